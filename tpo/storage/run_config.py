"""A run's resolved config in its folder, `config.json`: by it a later command tells whether anything was changed."""

from tpo.config.run import RunConfig
from tpo.storage.disk import write_atomically


def keep_config(config: RunConfig) -> None:
    """Writes the config to the run folder as `config.json`, every default spelled out."""
    write_atomically(config.root / "config.json", _resolved_copy(config))


def is_kept(config: RunConfig) -> bool:
    """Whether the run folder's last run had this config, so that its summary and report are this config's too."""
    path = config.root / "config.json"
    return path.is_file() and path.read_bytes() == _resolved_copy(config)


def _resolved_copy(config: RunConfig) -> bytes:
    # Without what each machine has its own of, so that a run in a bucket is the same from all of them.
    return (config.model_dump_json(indent=1, exclude={"storage": {"cache"}}) + "\n").encode()
