"""Whether the gate's scores can tell anything: prompts with references, and enough of them for the margin."""

from collections.abc import Iterator

from tpo.config.data import FileSource
from tpo.config.gate import SECOND_JUDGE, VALIDATION, VERIFIER, counts_wins, loss_of_a_prompt
from tpo.config.judges import JudgeConfig, VerifierJudge, checks_instructions
from tpo.config.run import RunConfig
from tpo.method.non_inferiority import can_pass, least_margin, least_prompts
from tpo.planning.fit import Misfit


def gate_misfits(config: RunConfig) -> Iterator[Misfit]:
    """Scores of the gate that no prompt can have, and those with too few prompts for the margin; the config's custom
    benchmarks have their sizes (`flows.prompt_counts.sized`), as far as they are known."""
    judges = {VALIDATION: config.judge, SECOND_JUDGE: config.evaluation.judge, VERIFIER: config.evaluation.verifier}
    benchmarks = {each.title: each for each in config.evaluation.benchmarks}
    for name in config.gate.scores:
        if (benchmark := benchmarks.get(name)) is not None:
            judge: JudgeConfig | None = benchmark.verifier or config.evaluation.judge
            prompts, key = benchmark.known_size, f"the benchmark {name}"
        else:
            judge, prompts, key = judges[name], config.data.validation, "data.validation"
            if _has_nothing_to_verify(config, judge):
                yield Misfit(
                    f"gate.scores has {name}, a verifier, which",
                    "needs references",
                    "data.source names no reference_column",
                    "name it, or another score",
                )
        if judge is not None and prompts:
            wins = counts_wins(judge, benchmark)
            yield from _too_few(config, name, prompts, key, loss_of_a_prompt(wins=wins))


def _has_nothing_to_verify(config: RunConfig, judge: JudgeConfig | None) -> bool:
    source = config.data.source
    if not isinstance(judge, VerifierJudge) or not isinstance(source, FileSource) or checks_instructions(judge):
        return False
    return source.reference_column is None


def _too_few(config: RunConfig, name: str, prompts: int, key: str, loss: float) -> Iterator[Misfit]:
    margin, confidence = config.gate.margin_of(name), config.gate.confidence
    if margin == 0 or can_pass(prompts, margin=margin, confidence=confidence, loss=loss):
        return
    needed = least_prompts(margin=margin, confidence=confidence, loss=loss)
    enough = least_margin(prompts, confidence=confidence, loss=loss)
    yield Misfit(
        f"gate.scores has {name}, with a margin of {margin:g}, which",
        f"needs about {needed:,} prompts to be shown even if no score changes",
        f"{key} has {prompts:,}",
        f"take more, or a margin of {enough:.2g}; as it is, M_t is promoted only if it is clearly better",
        certain=False,
    )
