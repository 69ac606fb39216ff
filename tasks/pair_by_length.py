"""Preference pairs of ThinkPO (2502.13173, §3.2): a long and a short output to the same prompt, the long one chosen; no
judge.

The outputs come from two sets of `Demonstration`s or from a file. The paper's filter: both outputs give an answer in
the requested format, and the answers are equal, so that a pair differs in the amount of thinking and not in the result;
a share of pairs with different answers may be added. That a long output must really be the longer one is our rule.
Every prompt without a pair is counted, by reason.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from judges.verifier import Verifier
from prompts.thought import load_prompt
from tasks.handles import prompt_templates
from tasks.shortage import Shortage
from tasks.source import prompt_id_of
from tasks.stage import begin, stage_task
from tpo.config.hub import local_path
from tpo.config.judges import VerifierJudge
from tpo.config.recipes import PairFile, ThinkPo
from tpo.config.renamed import as_noted
from tpo.config.run import RunConfig
from tpo.console import say
from tpo.data.pair_files import read_pair_rows
from tpo.models.chat import writer_encoder
from tpo.records import Artifact, Demonstration, Pair, RowCounts, read_turns
from tpo.storage.store import (
    Stage,
    external_file,
    read_rows,
    stream_rows,
)


@dataclass(frozen=True)
class TokenizedOutput:
    """One output."""

    token_ids: list[int]
    """Its tokens, end token included."""
    text: str
    """The same as text."""


@dataclass(frozen=True)
class LengthContrast:
    """A long and a short output to one prompt; either may be None."""

    prompt_id: str
    """The prompt."""
    prompt_token_ids: list[int]
    """Its tokens."""
    long: TokenizedOutput | None
    """The one that thinks at length."""
    short: TokenizedOutput | None
    """The other one."""

    @property
    def gap(self) -> int:
        """How many tokens longer the long one is."""
        return len(self.long.token_ids) - len(self.short.token_ids) if self.long and self.short else 0


@dataclass(frozen=True)
class PairsByLength:
    """Pairs with counts."""

    pairs: list[Pair]
    """In the order of the prompts."""
    account: RowCounts
    """In prompts."""
    differing: int
    """Pairs whose answers differ."""
    mean_gap: float
    """Mean difference of long and short in tokens."""


@stage_task("pair_by_length", run_name="pair {folder}")
def pair_by_length(config: RunConfig, folder: str, long: Artifact, short: Artifact) -> Artifact:
    """Pairs of `Demonstration`s, long ones chosen. Raises `StageError` if they are too few (`health.min_pairs`)."""
    stage = pairs_by_length_stage(config, folder, long, short)
    return stage.complete() or _make(config, stage, lambda: contrasts_of(long, short))


@stage_task("pairs_from_file", run_name="pairs of {folder}")
def pairs_from_file(config: RunConfig, folder: str, model: Artifact) -> Artifact:
    """Pairs from a file, in the tokens of `model`. Raises `StageError` if they are too few (`health.min_pairs`)."""
    source = config.recipe_as(ThinkPo).source
    assert isinstance(source, PairFile)
    stage = pairs_from_file_stage(config, folder, model)
    return stage.complete() or _make(config, stage, lambda: contrasts_in(source, config, model))


def contrasts_of(long: Artifact, short: Artifact) -> Iterator[LengthContrast]:
    """Two sets of outputs, prompt by prompt; those without a short output come last."""
    by_prompt = {row.prompt_id: row for row in read_rows(short, Demonstration)}
    for row in stream_rows(long, Demonstration):
        other = by_prompt.pop(row.prompt_id, None)
        yield LengthContrast(
            row.prompt_id,
            row.prompt_token_ids,
            TokenizedOutput(row.output_token_ids, row.output),
            None if other is None else TokenizedOutput(other.output_token_ids, other.output),
        )
    for row in by_prompt.values():
        yield LengthContrast(
            row.prompt_id, row.prompt_token_ids, None, TokenizedOutput(row.output_token_ids, row.output)
        )


def contrasts_in(source: PairFile, config: RunConfig, model: Artifact) -> Iterator[LengthContrast]:
    """The outputs of a file, row by row, under the prompt that the model is asked with."""
    encoder, prompt = writer_encoder(model.path, config.model), load_prompt(config.prompt)

    def output(text: str) -> TokenizedOutput | None:
        return TokenizedOutput(encoder.encode_output(text), text) if text.strip() else None

    for row in read_pair_rows(source):
        prompt_id = prompt_id_of(row.instruction, row.history)
        ids = prompt.encode(encoder, row.instruction, read_turns(row.history))
        yield LengthContrast(prompt_id, ids, output(row.chosen), output(row.rejected))


def _make(config: RunConfig, stage: Stage, contrasts: Callable[[], Iterable[LengthContrast]]) -> Artifact:
    recipe = config.recipe_as(ThinkPo)
    begin(stage)
    judge = Verifier(VerifierJudge(match=recipe.match, answer_pattern=recipe.answer_pattern))
    made = make_pairs(contrasts(), recipe, max_tokens=config.train.max_tokens, seed=config.seed, equal=judge.equal)
    # Suitable pairs that weren't drawn, and repeated prompts, don't count as failures.
    not_short = {"not_drawn", "other_gap", "duplicate"}
    dropped = {reason: count for reason, count in made.account.dropped.items() if reason not in not_short}
    prompts = made.account.rows_in - made.account.dropped.get("duplicate", 0)
    paired = prompts - sum(dropped.values()) if made.pairs else 0
    shortage = Shortage(stage.name, paired, prompts, dropped if made.pairs else made.account.dropped)
    if shortage.is_serious(config.health.min_pairs):
        raise shortage.error(config.health.min_pairs, _remedy(shortage.dropped, config))
    stage.write_shard(0, made.pairs)
    facts = {"differing": made.differing, "mean_gap": made.mean_gap}
    artifact = stage.commit(1, account=made.account, facts=facts)
    say(f"{stage.name}: {len(made.pairs)} pairs, {made.mean_gap:.0f} tokens apart; dropped: {made.account.reasons()}")
    return artifact


def _remedy(dropped: Mapping[str, int], config: RunConfig) -> str:
    """The remedy for the most common reason why a prompt has no pair."""
    recipe = config.recipe_as(ThinkPo)
    remedies = {
        "no_answer": "set recipe.answer_pattern to how the outputs give their answers",
        "undecided": f"set recipe.match ({recipe.match}) to how answers can be compared",
        "answers_differ": "long and short outputs give different answers: look at them, or raise "
        f"recipe.mismatched_answer_ratio ({recipe.mismatched_answer_ratio:g})",
        "too_long": f"raise train.max_tokens ({config.train.max_tokens}) or recipe.max_chosen_tokens "
        f"({recipe.max_chosen_tokens}) to the length of the outputs",
        "not_longer": "the long outputs are no longer than the short ones: look whether they are the wrong way round",
        "long_output_too_short": f"lower recipe.min_chosen_tokens ({recipe.min_chosen_tokens})",
        "no_long_output": "most prompts have no long output: look at where they come from",
        "no_short_output": "most prompts have no short output: look at where they come from",
        "other_gap": f"so few pairs have no third by length: set recipe.gap ({recipe.gap}) to all",
        "not_drawn": f"raise recipe.max_pairs ({recipe.max_pairs})",
    }
    most = max(dropped, key=lambda reason: dropped[reason], default="")
    return remedies.get(most, "look at the outputs")


def make_pairs(
    contrasts: Iterable[LengthContrast],
    config: ThinkPo,
    *,
    max_tokens: int,
    seed: int,
    equal: Callable[[str, str], bool | None],
) -> PairsByLength:
    """The pairs of some contrasts; `equal` tells whether two answers are equal, None if it can't."""
    pattern = re.compile(config.answer_pattern)
    dropped: Counter[str] = Counter()
    matching: list[LengthContrast] = []
    differing: list[LengthContrast] = []
    order: dict[str, int] = {}
    count = 0
    for count, contrast in enumerate(contrasts, 1):
        reason = "duplicate" if contrast.prompt_id in order else _unfit(contrast, pattern, config, max_tokens)
        order.setdefault(contrast.prompt_id, count)
        if reason is not None:
            dropped[reason] += 1
        elif (same := equal(*_answers(contrast, pattern))) is None:
            dropped["undecided"] += 1
        else:
            (matching if same else differing).append(contrast)
    share = config.mismatched_answer_ratio
    added = _drawn(differing, int(share / (1 - share) * len(matching)), seed)
    dropped["answers_differ"] += len(differing) - len(added)
    kept = _third([*matching, *added], config.gap)
    dropped["other_gap"] += len(matching) + len(added) - len(kept)
    drawn = _drawn(kept, len(kept) if config.max_pairs is None else config.max_pairs, seed)
    dropped["not_drawn"] += len(kept) - len(drawn)
    drawn.sort(key=lambda contrast: order[contrast.prompt_id])
    apart = {contrast.prompt_id for contrast in added}
    return PairsByLength(
        pairs=[_pair(contrast, swap=config.swap) for contrast in drawn],
        account=RowCounts(count, len(drawn), {reason: n for reason, n in dropped.items() if n}),
        differing=sum(contrast.prompt_id in apart for contrast in drawn),
        mean_gap=float(np.mean([contrast.gap for contrast in drawn])) if drawn else 0.0,
    )


def _unfit(contrast: LengthContrast, pattern: "re.Pattern[str]", config: ThinkPo, max_tokens: int) -> str | None:
    """Why a contrast can't make a pair, regardless of its answers."""
    if contrast.long is None or contrast.short is None:
        return "no_long_output" if contrast.long is None else "no_short_output"
    length = len(contrast.long.token_ids)
    if not pattern.search(contrast.long.text) or not pattern.search(contrast.short.text):
        return "no_answer"
    if contrast.gap <= 0:
        return "not_longer"
    if length < config.min_chosen_tokens:
        return "long_output_too_short"
    longest = max(length, len(contrast.short.token_ids))
    if length > (config.max_chosen_tokens or length) or len(contrast.prompt_token_ids) + longest > max_tokens:
        return "too_long"
    return None


def _answers(contrast: LengthContrast, pattern: "re.Pattern[str]") -> tuple[str, str]:
    assert contrast.long is not None and contrast.short is not None
    long, short = (pattern.findall(output.text)[-1].strip() for output in (contrast.long, contrast.short))
    return long, short


def _drawn(contrasts: Sequence[LengthContrast], count: int, seed: int) -> list[LengthContrast]:
    """A sample of that size, by a hash with the run's seed."""

    def lot(contrast: LengthContrast) -> str:
        return hashlib.sha256(f"{seed} {contrast.prompt_id}".encode()).hexdigest()

    return sorted(contrasts, key=lot)[:count]


def _third(contrasts: Sequence[LengthContrast], gap: str) -> list[LengthContrast]:
    """Those in one third of the length gaps."""
    if gap == "all":
        return list(contrasts)
    part = ("small", "middle", "large").index(gap)
    ranked = sorted(contrasts, key=lambda contrast: (contrast.gap, contrast.prompt_id))
    return ranked[len(ranked) * part // 3 : len(ranked) * (part + 1) // 3]


def _pair(contrast: LengthContrast, *, swap: bool) -> Pair:
    assert contrast.long is not None and contrast.short is not None
    chosen, rejected = (contrast.short, contrast.long) if swap else (contrast.long, contrast.short)
    return Pair(
        prompt_id=contrast.prompt_id,
        kind="regular",
        prompt_token_ids=contrast.prompt_token_ids,
        chosen_token_ids=chosen.token_ids,
        rejected_token_ids=rejected.token_ids,
        chosen_index=0,
        rejected_index=0,
        chosen_score=None,
        rejected_score=None,
        margin=None,
    )


def pairs_by_length_stage(config: RunConfig, folder: str, long: Artifact, short: Artifact) -> Stage:
    """Pairs of long and short outputs to the same prompts."""
    return Stage(
        config.root,
        f"{folder}/pairs",
        Pair,
        inputs={"long": long, "short": short},
        config={
            "seed": config.seed,
            "thinkpo": _filter_values(config.recipe_as(ThinkPo)),
            "max_tokens": config.train.max_tokens,
        },
    )


def pairs_from_file_stage(config: RunConfig, folder: str, model: Artifact) -> Stage:
    """Pairs of long and short outputs from a file, in the tokens of `model`."""
    source = config.recipe_as(ThinkPo).source
    assert isinstance(source, PairFile)
    return Stage(
        config.root,
        f"{folder}/pairs",
        Pair,
        inputs={
            "model": model,
            "pair file": external_file(local_path(source.path)),
            "prompt templates": prompt_templates(config.prompt, config.model),
        },
        config={
            "seed": config.seed,
            "thinkpo": _filter_values(config.recipe_as(ThinkPo)),
            "columns": source.model_dump(mode="json", exclude={"path"}),
            "max_tokens": config.train.max_tokens,
        },
    )


def _filter_values(recipe: ThinkPo) -> dict[str, Any]:
    """The config values that decide which long and short outputs become pairs."""
    return as_noted(recipe, exclude={"kind", "source", "sft"})
