"""Attacks on a run's judge before its first training (`health.max_attacked`, docs/judges.md)."""

from collections.abc import Sequence

from tasks.attack import attack, attack_spec, withstand
from tasks.handles import JudgedSamples
from tasks.judge import judge
from tpo.config.run import RunConfig
from tpo.records import Artifact, AttackShare


def attack_judge(
    config: RunConfig, t: int, number: int, prompts: Artifact, answers: JudgedSamples
) -> Sequence[AttackShare]:
    """What attacks do to the run's judge, on M_0's answers; nothing after the first round, or without a limit.

    Raises `StageError` if one is beyond the limit.
    """
    if config.health.max_attacked is None or (t, number) != (1, 1):
        return ()
    folder = f"{answers.samples.path.parent.relative_to(config.root).as_posix()}/attacks"
    pairs = attack(config, folder, prompts, answers)
    judged = judge(config, attack_spec(config, folder), pairs.samples, pairs.prompts)
    return withstand(config, folder, prompts, answers, judged)
