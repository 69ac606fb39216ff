"""Rounds and replay on the miniature, at equal samples and equal optimizer steps: does it pay to sample more often?

Two iterations on three seeds of the `laptop` profile in each of three settings: the paper's, four rounds an iteration
(`train.rounds = 4`), and three tenths of the pairs from the iteration before (`pair.replay_share = 0.3`). In all
of them an iteration has 400 prompts, 8 outputs each, and 36 optimizer steps (9 in each of four rounds), in as many
epochs as that takes. Prints the tables of docs/results.md. With a folder, runs are kept there and resumed:
`python -m tests.benchmarks.bench_rounds [FOLDER] [SEED ...]`.
"""

import shutil
import sys
import tempfile
from pathlib import Path

from flows.recipes import profile_path, working
from tasks.estimates import values_of
from tasks.handles import judged, measuring_spec
from tests.without_prefect import without_prefect
from tpo.config.load import load_config
from tpo.config.run import RunConfig
from tpo.method.stats import paired_difference
from tpo.report.summary import Summary

SEEDS = (0, 1, 2)
STEPS, ITERATIONS = 36, 2
SETTINGS = {
    "one round": ("train.epochs=12", f"train.max_steps={STEPS}"),
    "one round, replay 0.3": ("train.epochs=12", f"train.max_steps={STEPS}", "pair.replay_share=0.3"),
    "four rounds": ("train.epochs=12", f"train.max_steps={STEPS // 4}", "train.rounds=4"),
}
PAPER, *OTHERS = SETTINGS


def main(folder: Path, seeds: tuple[int, ...]) -> None:
    """Runs and prints."""
    from flows.iterate import iterate

    found = dict[tuple[str, int], Summary]()
    with working(), without_prefect():
        for seed in seeds:
            for setting in SETTINGS:
                config = config_of(folder, setting, seed)
                if not config.root.exists() and config.train.rounds == 1 and setting != PAPER:
                    # Nothing is replayed in the first iteration, which is therefore the same.
                    paper = config_of(folder, PAPER, seed).root
                    shutil.copytree(paper, config.root, ignore=shutil.ignore_patterns("iter_2"))
                found[setting, seed] = iterate(config, ITERATIONS)
    print_scores(found, seeds)
    print_differences(folder, seeds)


def config_of(folder: Path, setting: str, seed: int) -> RunConfig:
    """The run of one setting and seed."""
    name = f"{setting.replace(', ', '-').replace(' ', '-')}-seed{seed}"
    return load_config(
        profile_path("laptop"), [*SETTINGS[setting], f"seed={seed}", f'name="{name}"', f'folder="{folder}"']
    )


def print_scores(found: dict[tuple[str, int], Summary], seeds: tuple[int, ...]) -> None:
    """Test scores by setting, model and seed, with what the models were trained on."""
    print(f"\n| | {' | '.join(f'seed {seed}' for seed in seeds)} |\n|---|{'---|' * len(seeds)}")
    for setting in SETTINGS:
        for t in range(1, ITERATIONS + 1):
            cells = []
            for seed in seeds:
                row = found[setting, seed].models[t + 1]
                assert row.score is not None
                cells.append(
                    f"{percent(row.score)}, {row.regular_pairs}+{row.error_pairs} pairs, epoch {row.chosen_epoch}, "
                    f"{sum(row.seconds.values()):.0f} s"
                )
            print(f"| {setting}: M_{t} | {' | '.join(cells)} |")


def print_differences(folder: Path, seeds: tuple[int, ...]) -> None:
    """Test scores minus those of the paper's setting, paired by prompt: by seed, and over all prompts of all seeds."""
    print(f"\n| | {' | '.join(f'seed {seed}' for seed in seeds)} | all |\n|---|{'---|' * (len(seeds) + 1)}")
    for setting in OTHERS:
        for t in range(1, ITERATIONS + 1):
            pairs = []
            for seed in seeds:
                other, paper = (scores_of(config_of(folder, each, seed), t) for each in (setting, PAPER))
                pairs.append([(other[prompt], paper[prompt]) for prompt in sorted(other.keys() & paper.keys())])
            pairs.append([pair for of_seed in pairs for pair in of_seed])
            cells = [
                percent(paired_difference([a for a, _ in each], [b for _, b in each], confidence=0.95))
                for each in pairs
            ]
            print(f"| {setting} − {PAPER}: M_{t} | {' | '.join(cells)} |")


def scores_of(config: RunConfig, iteration: int) -> dict[str, float]:
    """Test score by prompt."""
    return dict(values_of(judged(config, measuring_spec(config, iteration))))


def percent(found: object) -> str:
    """A value with its interval, times 100."""
    value, low, high = (100 * getattr(found, name) for name in ("value", "low", "high"))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


if __name__ == "__main__":
    given = sys.argv[1:]
    where = given[0] if given and not given[0].isdigit() else tempfile.mkdtemp(prefix="tpo-bench-")
    main(Path(where).resolve(), tuple(int(each) for each in given if each.isdigit()) or SEEDS)
