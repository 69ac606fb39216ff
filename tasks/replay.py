"""Training pairs of earlier iterations, used again next to an iteration's own.

Off by default: in the paper (2410.10630, §2.3) each iteration's pairs come from the current model alone. Only what the
run's own iterations have made is drawn from, as their `pairs` stages are now: asked with the same prompt, judged by the
same judge, and from prompts that are neither validation nor test. Own pairs are all kept; a hash with the run's seed
decides which earlier ones are added, so neither their order nor their iteration does.
"""

import hashlib
from collections.abc import Sequence

from tasks.handles import round_folder
from tasks.stage import complete_or_begun, stage_task
from tpo.config.run import RunConfig
from tpo.console import say
from tpo.records import Artifact, Pair
from tpo.storage.store import Stage, read_rows, stream_rows


def with_replay(
    config: RunConfig, iteration: int, number: int, pairs: Artifact, earlier: Sequence[Artifact]
) -> Artifact:
    """What to train on: the round's pairs, with some of `earlier` iterations if there are any and the config asks."""
    if not config.pair.replay_share or not earlier:
        return pairs
    return replay(config, iteration, number, pairs, earlier)


@stage_task("replay", run_name="replay for iteration {iteration}")
def replay(config: RunConfig, iteration: int, number: int, pairs: Artifact, earlier: Sequence[Artifact]) -> Artifact:
    """The pairs of a round, and after them some of those of `earlier` iterations."""
    stage = replay_stage(config, iteration, number, pairs, earlier)
    if (done := complete_or_begun(stage)) is not None:
        return done
    own = read_rows(pairs, Pair)
    lots = [pair for artifact in earlier for pair in stream_rows(artifact, Pair)]
    added = drawn(lots, replayed_count(len(own), config.pair.replay_share), f"{config.seed} {stage.name}")
    stage.write_shard(0, [*own, *added])
    say(f"{stage.name}: {len(added)} of {len(lots)} earlier pairs are added to {len(own)}")
    return stage.commit(1, facts={"own": len(own), "replayed": len(added)})


def replayed_count(own: int, share: float) -> int:
    """How many pairs to add so that they make up `share` of all."""
    return round(own * share / (1 - share))


def drawn(pairs: Sequence[Pair], count: int, seed: str) -> list[Pair]:
    """`count` of the pairs, or all if there are fewer, drawn without replacement."""
    return sorted(pairs, key=lambda pair: hashlib.sha256(f"{seed} {pair.prompt_id}".encode()).digest())[:count]


def replay_stage(config: RunConfig, iteration: int, number: int, pairs: Artifact, earlier: Sequence[Artifact]) -> Stage:
    """The pairs that a round is trained on if some are replayed."""
    return Stage(
        config.root,
        f"{round_folder(config, iteration, number)}/replay",
        Pair,
        inputs={"pairs": pairs, **{f"earlier pairs {i}": artifact for i, artifact in enumerate(earlier)}},
        config={"seed": config.seed, "replay_share": config.pair.replay_share},
    )
