"""Claims about runs whose judge comes from the hub, on mock engines: what is kept of its commit, and what a move does.

The runs are those of `tests.faults.mock_run`, in a process of their own.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.apart import run_apart
from tests.faults import mock_run
from tests.hub_server import Hub
from tests.sampling import sampled
from tpo.config.base import SHIPPED_SEED_MODEL

MINIATURE = SHIPPED_SEED_MODEL.parent
JUDGES = {
    "pairwise": (MINIATURE / "evaluator", {"tournament": "all_pairs"}),
    "armorm": (MINIATURE / "armorm", {}),
}
"""The folder that the hub has of each judge, and its other settings."""


def of_hub(kind: str) -> dict[str, bytes]:
    """A judge's files as its authors publish them: ArmoRM's config asks for code."""
    files = {path.name: path.read_bytes() for path in JUDGES[kind][0].iterdir() if path.is_file()}
    if kind == "armorm":
        asking = json.loads(files["config.json"]) | {"auto_map": {"AutoModel": "modeling_custom.ArmoRM"}}
        files |= {"config.json": json.dumps(asking).encode(), "modeling_custom.py": b"import os"}
    return files


def run_in_a_process(parent: Path, kind: str) -> tuple[dict[str, Any], str]:
    """The results of a run with the hub's judge, made in its own process, and the end of its stderr."""
    stderr = run_apart("tests.hub.test_judges", parent, kind)
    return json.loads((parent / "found.json").read_text()), stderr[-4000:]


@pytest.mark.slow
@pytest.mark.parametrize("kind", sampled("judges of the hub", list(JUDGES), 1))
def test_a_runs_judge_stays_at_its_commit_and_its_judgments_at_that_judge(hub: Hub, tmp_path: Path, kind: str):
    repository = hub.repository("models/o/judge", of_hub(kind))
    first = repository.branches["main"]
    found, _ = run_in_a_process(tmp_path, kind)
    made = found.pop("made")
    assert found["model"] == f"hf://o/judge@{first}" and found["pins"] == {"hf://o/judge": found["model"]}
    assert found["judged by"] == found["folder"] and first in found["external"]
    assert found["scored"] > 0
    second = repository.commit(of_hub(kind) | {"README.md": b"new"})
    rerun, stderr = run_in_a_process(tmp_path, kind)
    assert f"main has moved to commit {second}; this run stays at {first}" in stderr
    assert made and rerun == found | {"made": []}
    assert not [request for request in hub.asked if request.endswith(".py")]


class _Scorer:
    """Replaces a `ScorerPool`: a number that depends on the chat alone."""

    def score(self, groups: Iterable[Sequence[Any]]) -> Iterator[list[list[float]]]:
        for chats in groups:
            yield [[hash(chat.token_ids) % 1000 / 1000, *[0.5] * 38] for chat in chats]


@mock_run.prepared(forks=False)
def main(parent: Path, kind: str) -> None:
    """Makes the run; writes what it kept."""
    from flows.iterate import iterate
    from tests.faults.mock_engines import MockEngines
    from tpo.config.judges import VerifierJudge
    from tpo.config.run import RunConfig
    from tpo.hub.fetch import fetched, say_moves
    from tpo.records import Score
    from tpo.run_context import RunContext, using
    from tpo.storage.current import read_pins
    from tpo.storage.store import complete_artifact, folder_artifact, read_manifest, stream_rows

    class Engines(MockEngines):
        def scorer_pool(self, *_: Any, **__: Any) -> Any:
            return _Scorer()

    if not (parent / "seed").exists():
        mock_run.make_seed(parent / "seed")
    values = mock_run.config_of(parent / "runs", mock_run.Plan("verifier")).model_dump()
    judge = {"kind": kind, "model": "hf://o/judge", **JUDGES[kind][1]}
    config = fetched(RunConfig.model_validate(values | {"judge": judge}))
    before = {path: path.stat().st_mtime_ns for path in config.root.rglob("manifest.json")}
    with using(RunContext(engines=Engines())):
        iterate(config, 1)
    say_moves(config)
    manifest = read_manifest(config.root / "iter_1" / "judgments")
    assert manifest is not None
    assert not isinstance(config.judge, VerifierJudge) and config.judge.folder is not None
    scores = stream_rows(complete_artifact(config.root / "iter_1" / "scores"), Score)
    found = {
        "model": config.judge.model,
        "pins": {written: pin.address for written, pin in read_pins(config.root).items()},
        "judged by": manifest.inputs["judge model"],
        "folder": folder_artifact(config.judge.folder).fingerprint,
        "external": " ".join(manifest.external or ()),
        "scored": sum(score.value is not None for score in scores),
        "made": sorted(
            str(path.relative_to(config.root))
            for path in config.root.rglob("manifest.json")
            if path.stat().st_mtime_ns != before.get(path)
        ),
    }
    (parent / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
