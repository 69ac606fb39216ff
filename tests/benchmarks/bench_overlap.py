"""Time to sample and judge, when a server judges while the model is sampled, compared with one after the other.

The samples are of the miniature's seed model by the real vLLM; the judge is a loopback server that takes as long for a
reply as a model might. Both ways run in turn with new run folders, and give the same scores (checked).

Run with `python -m tests.benchmarks.bench_overlap [--prompts 96] [--milliseconds 400]`; takes a few minutes.
"""

import contextlib
import tempfile
import zlib
from pathlib import Path
from typing import Any

from flows.recipes import PROFILES
from tasks.handles import JudgedSamples, seed_model, training_spec
from tasks.judge import judge
from tasks.judge_ahead import judging_ahead
from tasks.load_prompts import load_prompts
from tasks.sample import sample, samples_stage
from tests.benchmarks import measure
from tests.benchmarks.measure import Timed
from tests.misbehaving_server import Action, MisbehavingServer, Say
from tests.without_prefect import without_prefect
from tpo.config.load import load_config
from tpo.config.run import RunConfig
from tpo.engines.engines import open_engines
from tpo.records import Score
from tpo.storage.store import read_rows

CONCURRENCY = 8


def main() -> None:
    """Measures and prints."""
    chosen = measure.options(__doc__, threads=2, rounds=5, prompts=96, milliseconds=400)
    print(measure.describe_machine(chosen.threads))

    def grade(request: dict[str, Any], _: int) -> Action:
        number = zlib.crc32(request["messages"][-1]["content"].encode()) % 10 + 1
        return Say(f"[[Score: {number}]]", seconds=chosen.milliseconds / 1000)

    with MisbehavingServer(grade) as server, tempfile.TemporaryDirectory() as folder, open_engines(), without_prefect():

        def way(ahead: bool, number: int) -> Timed[list[Score]]:
            config = _config(Path(folder) / f"{number}-{ahead}", server, chosen.prompts)
            prompts = load_prompts(config, "iter_1/prompts", seed_model(config), [])
            found = measure.timed(lambda: _judged(config, prompts, ahead=ahead))
            return Timed(read_rows(found.found.scores, Score), found.seconds, found.cpu_seconds)

        ways = {"ahead": lambda number: way(True, number), "after": lambda number: way(False, number)}
        found = measure.alternate(ways, chosen.rounds, warm_up=1)
    assert all(a.found == b.found for a, b in zip(found["ahead"], found["after"], strict=True)), "scores differ"
    for name, times in found.items():
        print(name, ", ".join(f"{each.seconds:.1f}" for each in times), "s")
    ratio = measure.ratio_of_seconds(found["ahead"], found["after"])
    print(f"{len(found['after'][0].found)} responses, {CONCURRENCY} calls at once of {chosen.milliseconds} ms: {ratio}")


def _judged(config: RunConfig, prompts: Any, *, ahead: bool) -> JudgedSamples:
    spec, model = training_spec(config, 1), seed_model(config)
    stage = samples_stage(config, spec, model, prompts)
    with judging_ahead(config, spec, stage, prompts) if ahead else contextlib.nullcontext():
        samples = sample(config, spec, model, prompts)
    return judge(config, spec, samples, prompts)


def _config(folder: Path, server: MisbehavingServer, prompts: int) -> RunConfig:
    settings = [
        f'folder="{folder}"',
        f"data.per_iteration={prompts}",
        "engine.shard_prompts=4",
        "health.min_reference_agreement=0",
    ]
    values = load_config(PROFILES / "laptop.toml", settings).model_dump(mode="json")
    where = {"base_url": server.base_url, "key_variable": "NO_KEY", "concurrency": CONCURRENCY}
    return RunConfig.model_validate(values | {"judge": {"kind": "rubric", "model": "m", "endpoint": where}})


if __name__ == "__main__":
    main()
