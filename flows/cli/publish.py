"""`tpo publish`: a model of a run as a folder that others load, and on a hub on request."""

from pathlib import Path

from flows.publication.find import find_model
from flows.publication.publish import publish
from flows.publication.push import check_push, push
from flows.recipes import resolve_config
from tpo.storage.mirror import reading

FOLDER = Path("published")
"""The default place of published folders."""


def publish_run(
    run: str | None, profile: str | None, iteration: int | None, folder: Path | None, *, pairs: bool, to_hub: str | None
) -> list[str]:
    """Publishes the latest model, or that of an iteration, of the run called `run` or at that path; the lines to print.

    With a profile the run is where that says, which may be a bucket.
    """
    if to_hub is not None:
        check_push(to_hub)
    if profile is not None:
        config = resolve_config(profile, run_name=run, judge=None, seed=None, overrides=[])
        with reading(config):
            model = find_model(config.root, iteration)
            rows = (model.pairs() or None) if pairs else None
    else:
        model = find_model(_root(run or "laptop"), iteration)
        rows = (model.pairs() or None) if pairs else None
    place = folder or FOLDER / f"{model.config.name}-{model.name.replace('_', '')}"
    published = publish(model, place, rows)
    lines = [f"{model.name} of {model.root} is published: {place}"]
    if not published.made:
        lines = [f"{model.name} of {model.root} is published already: {place}; nothing to do"]
    if to_hub is not None:
        lines += [f"pushed to {address}" for address in push(published, to_hub, f"{model.name} of {model.config.name}")]
    return lines


def _root(run: str) -> Path:
    return Path(run) if "/" in run else Path("runs") / run
