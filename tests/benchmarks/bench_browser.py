"""The sample browser on a run of 5,000 prompts and 8 samples each: time from an address to the first interaction.

`python -m tests.benchmarks.bench_browser` writes such a run with outputs of some 500 tokens, then its static files, and
opens it in Chromium from disk and from `tpo view`'s server. Ready means: the list is there, the first prompt's samples
are shown, and a click on another prompt has shown that one's.
"""

import tempfile
import time
from pathlib import Path
from threading import Thread

import numpy as np

from flows.browser.export import FOLDER, PAGE, write_browser
from flows.browser.server import SampleServer
from flows.browser.site import Site
from tests.browser.chromium import CHROMIUM, Page
from tests.stored_run import begin_run, write_pairs, write_prompts, write_round
from tpo.config.run import RunConfig
from tpo.console import say
from tpo.records import Prompt, Sample, Score

PROMPTS, K = 5000, 8
WORDS = ["the", "model", "thinks", "about", "what", "was", "asked", "and", "then", "answers", "with", "care", "seven"]


def main() -> None:
    """Prints the times."""
    with tempfile.TemporaryDirectory() as folder:
        config = large_run(Path(folder))
        begun = time.perf_counter()
        write_browser(config)
        say(f"static files: {time.perf_counter() - begun:.1f} s, {_mib(config.root / FOLDER / 'data'):.0f} MiB")
        say(f"samples as Parquet, with their tokens: {_mib(config.root / 'iter_1' / 'samples'):.0f} MiB")
        if CHROMIUM is None:
            say("no Chromium here")
            return
        for _ in range(3):
            say(f"from disk: {ready_seconds((config.root / PAGE).as_uri()):.2f} s")
        with SampleServer(Site(config.root), 0) as server:
            Thread(target=server.serve_forever, daemon=True).start()
            for name in ("from the server, first", "again", "again"):
                say(f"{name}: {ready_seconds(server.url):.2f} s")
            server.shutdown()


def large_run(folder: Path, prompts: int = PROMPTS) -> RunConfig:
    """A run with one large round."""
    rng = np.random.default_rng(0)
    config = RunConfig(name="large", folder=folder)
    begin_run(config)
    asked = [
        Prompt(f"{i:016x}", f"Question {i}: {text_of(rng, 30)}?", "7", f"kind {i % 9}", i % 5) for i in range(prompts)
    ]
    groups = [[_sample(rng, prompt.prompt_id, k) for k in range(K)] for prompt in asked]
    values = rng.integers(0, 2, (prompts, K)).astype(float) + rng.normal(0, 0.01, (prompts, K)).round(3)

    def score(sample: Sample) -> Score:
        value = float(values[int(sample.prompt_id, 16), sample.index])
        error = sample.parse_error
        return Score(
            sample.prompt_id,
            sample.index,
            None if error else value,
            error and f"parse_error: {error}",
            None if error else value > 0.5,
            len(sample.response),
        )

    artifact = write_prompts(config.root, "iter_1/prompts", asked)
    write_pairs(config, "iter_1", write_round(config.root, "iter_1", artifact, groups, score))
    return config


def text_of(rng: np.random.Generator, count: int) -> str:
    """Some words."""
    return " ".join(WORDS[i] for i in rng.integers(0, len(WORDS), count))


def _sample(rng: np.random.Generator, prompt_id: str, index: int) -> Sample:
    thought, response = text_of(rng, int(rng.integers(80, 240))), text_of(rng, int(rng.integers(100, 300)))
    broken = rng.random() < 0.03
    tokens = rng.integers(0, 128_000, (len(thought) + len(response)) // 4).tolist()
    output = f"{thought}\n{response}"
    return Sample(prompt_id, index, [1, 2], tokens, output, thought, response, "cut_by_length" if broken else None, 1)


def ready_seconds(url: str) -> float:
    """Seconds from an address until another prompt, clicked as soon as the list is there, shows its samples."""
    with tempfile.TemporaryDirectory() as folder, Page(Path(folder) / "profile") as page:
        begun = time.perf_counter()
        page.open(url)
        page.await_(
            "document.querySelectorAll('#table .tabulator-row').length > 3 && !!document.querySelector('.sample')"
        )
        page.run("document.querySelectorAll('#table .tabulator-row')[3].click()")
        page.await_("document.querySelector('.id').textContent.endsWith('3')")
        seconds = time.perf_counter() - begun
        assert page.errors == []
        return seconds


def _mib(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20


if __name__ == "__main__":
    main()
