"""Seconds from a trained model to its first token, compared with the cold start of an engine (row 4).

A running engine loads the new weights, proves that it has them, and samples one token; its peer is a new engine that
starts with them and samples one. Both are the product's actors, in turn, on SmolLM2-135M-Instruct and a copy whose
weights differ a little, so that every load is a change.

GPU engines take the same steps (`reload_weights`, the exact proof); only what the proof costs there wasn't measured.

Run with `python -m tests.benchmarks.bench_reload`; takes about five minutes. Needs the model: make fetch
PROFILE=smollm2-135m.
"""

import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks import measure
from tests.benchmarks.bench_sampling import CONTEXT, MODEL
from tests.benchmarks.measure import Row, Timed
from tpo.config.data import SampleConfig
from tpo.config.resources import ClusterConfig, EngineConfig
from tpo.engines.cluster.processes import engine_environment, start_ray
from tpo.engines.inference.sampler import Engine, Request
from tpo.records import Artifact
from tpo.storage.store import folder_artifact


def main() -> None:
    """Measures and prints."""
    import ray

    chosen = measure.options(__doc__, threads=2, rounds=5)
    print(measure.describe_machine(chosen.threads))
    start_ray(ClusterConfig())
    config = EngineConfig(threads=chosen.threads)

    def an_engine() -> Any:
        environment = {"env_vars": engine_environment(config)}
        return ray.remote(Engine).options(num_cpus=0, runtime_env=environment).remote(config, CONTEXT)

    def first_token(engine: Any, model: Artifact) -> None:
        assert ray.get(engine.load.remote(model)) is None
        request = Request([1, 9, 300, 17], 0)
        sample = SampleConfig(max_new_tokens=1)
        ray.get(engine.generate.remote([request], sample, 1, 1, _accept))

    with tempfile.TemporaryDirectory() as folder:
        models = [folder_artifact(MODEL.resolve()), _changed(MODEL, Path(folder) / "changed")]
        living = an_engine()
        first_token(living, models[1])

        def reload(number: int) -> Timed[Any]:
            return measure.timed(lambda: first_token(living, models[number % 2]))

        def cold(number: int) -> Timed[Any]:
            started = []

            def start() -> None:
                started.append(an_engine())
                first_token(started[0], models[number % 2])

            found = measure.timed(start)
            ray.kill(started[0])
            return found

        found = measure.alternate({"reload": reload, "cold": cold}, chosen.rounds)
    for name, times in found.items():
        print(name, ", ".join(f"{each.seconds:.1f}" for each in times), "s")
    ratio = measure.ratio_of_seconds(found["reload"], found["cold"])
    what, peer = "seconds from trained to the first token, 135M, CPU", "a cold engine start"
    size, speed = weights_size(MODEL), measure.bandwidth()
    took = statistics.median([each.seconds for each in found["reload"]])
    limit = (
        f"memory: the {size / 2**20:.0f} MiB of weights are read once in {size / speed:.2f} s at "
        f"{speed / 1e9:.0f} GB/s; the reload takes {took:.1f} s: it loads and packs them, hashes the file's rows, "
        "and computes a probe with transformers"
    )
    measure.report(Row(4, what, peer, "≤ 0.1", ratio.median, ratio.low, ratio.high, limit), as_json=chosen.json)


def weights_size(model: Path) -> int:
    """Bytes of a model's files of weights."""
    return sum(path.stat().st_size for path in model.glob("*.safetensors"))


def _accept(*_: object) -> bool:
    return True


def _changed(model: Path, folder: Path) -> Artifact:
    """A copy of the model with slightly different weights."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, folder)
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: 1.001 * weight for name, weight in weights.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    return folder_artifact(folder)


if __name__ == "__main__":
    main()
