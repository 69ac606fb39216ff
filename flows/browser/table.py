"""A round as columns: what its list shows and filters by, for every prompt and every sample, without the texts.

Texts are codes into short lists, and a column without information is left out: the page offers filters only for
columns that exist. A prompt's outcome is read from the pairs; for a prompt without one, the rules of `tasks.candidates`
are applied again, since the run folder only counts the reasons.
"""

import itertools
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from flows.browser.rows import PairRow, SampleRow
from tasks.candidates import ScoredGroup, group_candidates, pair_indices
from tpo.config.judges import least_margin, pairs_need_agreement
from tpo.config.recipes import SelfTrain, ThinkPo
from tpo.config.run import RunConfig
from tpo.records import Judgment, Prompt, Score

SNIPPET = 240
"""Characters of an instruction that the list shows."""
Scores = Mapping[tuple[str, int], Score]
"""Scores by prompt and sample."""


@dataclass(frozen=True)
class RoundRows:
    """All of a round that its table is made of."""

    shards: Iterable[Sequence[SampleRow]]
    """The samples by shard, gone through once; all samples of a prompt are in one."""
    prompts: Mapping[str, Prompt]
    """Their prompts by id."""
    scores: Scores | None = None
    """Their scores; None until all are judged."""
    verdicts: Iterable[Sequence[tuple[str, int, int | None, float | None]]] = ()
    """The judgments by shard, gone through once: prompt, sample, other sample, outcome."""
    pairs: Sequence[PairRow] | None = None
    """The pairs made of them; None until they are made, or if the round makes none."""
    rho: float | None = None
    """Strength of length control; None without."""
    outputs: Mapping[bytes, int] | None = None
    """Where pairs also come from other rounds: this round's outputs, by prompt and tokens."""
    side: str | None = None
    """`chosen` or `rejected` if all of a round's outputs can only be that."""
    direct: Scores | None = None
    """Scores of the seed's answers without thoughts to the same prompts."""


@dataclass
class _Codes:
    """Texts as numbers."""

    texts: dict[str, int] = field(default_factory=dict)

    def of(self, text: str | None) -> int:
        return -1 if text is None else self.texts.setdefault(text, len(self.texts))


def round_table(rows: RoundRows, config: RunConfig) -> dict[str, Any]:
    """The columns of a round, as JSON can hold them. Texts are in memory a shard at a time."""
    paired = None if rows.pairs is None else {row.pair.prompt_id for row in rows.pairs}
    prompts, samples, why = _PromptColumns(rows), _SampleColumns(rows, config), list[str | None]()
    for i, shard in enumerate(rows.shards):
        groups = _by_prompt(shard)
        prompts.add(i, groups)
        samples.add(groups)
        if paired is not None:
            why += _reasons(rows, groups, paired, config)
    pairs = _pairs(rows, {prompt_id: i for i, prompt_id in enumerate(prompts.columns["id"])})
    table: dict[str, Any] = {
        "prompts": prompts.told(),
        "samples": samples.told(),
        "pairs": None if pairs is None else [list(pair) for pair in pairs],
    }
    if paired is not None:
        table["prompts"]["why"] = why
    return table


_Groups = Sequence[list[SampleRow]]
"""The samples by prompt."""


def _by_prompt(shard: Iterable[SampleRow]) -> _Groups:
    found: dict[str, list[SampleRow]] = {}
    for row in shard:
        found.setdefault(row.sample.prompt_id, []).append(row)
    return [sorted(group, key=lambda row: row.sample.index) for group in found.values()]


class _PromptColumns:
    """What is shown of each prompt."""

    def __init__(self, rows: RoundRows) -> None:
        self._rows = rows
        self._categories = _Codes()
        self._judged, self._against = _verdict_columns(rows)
        self.columns = defaultdict[str, list[Any]](list)

    def add(self, shard: int, groups: _Groups) -> None:
        """Takes the prompts of a shard."""
        for group in groups:
            prompt_id = group[0].sample.prompt_id
            prompt = self._rows.prompts.get(prompt_id)
            values = {
                "id": prompt_id,
                "text": " ".join(prompt.instruction.split())[:SNIPPET] if prompt else "",
                "category": self._categories.of(prompt.category) if prompt else -1,
                "difficulty": prompt.difficulty if prompt else None,
                "turns": len(prompt.earlier) if prompt else 0,
                "shard": shard,
                "judged": self._judged.get(prompt_id, -1),
                "contradicted": self._against[prompt_id] if self._against else None,
                "misordered": _misordered(self._rows.scores, group) if self._rows.scores else None,
            }
            for name, value in values.items():
                self.columns[name].append(value)

    def told(self) -> dict[str, Any]:
        """The columns that say anything."""
        columns = {**self.columns, "categories": list(self._categories.texts)}
        return {name: column for name, column in columns.items() if _tells(column)}


def _verdict_columns(rows: RoundRows) -> tuple[dict[str, int], Counter[str]]:
    """The shard of each prompt's judgments, and how many of its pairs were decided differently in the two orders."""
    judged: dict[str, int] = {}
    against: Counter[str] = Counter()
    for i, shard in enumerate(rows.verdicts):
        decided: dict[tuple[str, int, int], float] = {}
        for prompt_id, index, other, outcome in shard:
            judged[prompt_id] = i
            if other is not None and outcome:
                decided[prompt_id, index, other] = outcome
        for (prompt_id, index, other), outcome in decided.items():
            # Seen from the first response, the other order's outcome has the other sign, unless the order decided.
            if index < other and outcome * decided.get((prompt_id, other, index), 0.0) > 0:
                against[prompt_id] += 1
    return judged, against


def _misordered(scores: Scores, group: Sequence[SampleRow]) -> int:
    """Pairs of a right and a wrong response in which the wrong one doesn't score lower."""
    found = [scores[key] for row in group if (key := (row.sample.prompt_id, row.sample.index)) in scores]
    right = [score.value for score in found if score.correct is True and score.value is not None]
    wrong = [score.value for score in found if score.correct is False and score.value is not None]
    return sum(bad >= good for good, bad in itertools.product(right, wrong))


class _SampleColumns:
    """What is shown of each sample."""

    _ALWAYS = ("count", "index", "thought", "response", "tokens")

    def __init__(self, rows: RoundRows, config: RunConfig) -> None:
        self._rows = rows
        self._config = config
        self._errors, self._unscored = _Codes(), _Codes()
        self._columns = defaultdict[str, list[Any]](list, {name: [] for name in self._ALWAYS})

    def add(self, groups: _Groups) -> None:
        """Takes the samples of a shard."""
        self._columns["count"] += [len(group) for group in groups]
        controlled = _controlled(self._rows, groups, self._config)
        all_rows = [row for group in groups for row in group]
        for row, controlled_score in zip(all_rows, controlled, strict=True):
            sample = row.sample
            score = (self._rows.scores or {}).get((sample.prompt_id, sample.index))
            values = {
                "index": sample.index,
                "thought": len(sample.thought),
                "response": len(sample.response),
                "tokens": row.tokens,
                "tries": sample.tries,
                "error": self._errors.of(sample.parse_error),
                "score": _number(score.value) if score else None,
                "unscored": self._unscored.of(score.unscored) if score and sample.parse_error is None else -1,
                "correct": int(score.correct) if score and score.correct is not None else None,
                "controlled": controlled_score,
                "change": _change(score, (self._rows.direct or {}).get((sample.prompt_id, 0))),
            }
            for name, value in values.items():
                self._columns[name].append(value)

    def told(self) -> dict[str, Any]:
        """The columns that say anything."""
        columns = {**self._columns, "errors": list(self._errors.texts), "reasons": list(self._unscored.texts)}
        return {name: column for name, column in columns.items() if name in self._ALWAYS or _tells(column)}


def _tells(column: Sequence[Any]) -> bool:
    """Whether a column says anything: not only that nothing is known, or nothing unusual."""
    return any(value is not None and value != -1 for value in column)


def _controlled(rows: RoundRows, groups: _Groups, config: RunConfig) -> list[float | None]:
    """The length-controlled score of each sample that parses and is scored; None for others, and without any."""
    if rows.rho is None or rows.scores is None:
        return [None for group in groups for _ in group]
    found: list[float | None] = []
    for group, rows_of_group in zip(_candidates(rows, groups), groups, strict=True):
        values = group.controlled(rows.rho, config.pair.thought_penalty).tolist() if group.valid else list[float]()
        by_index = {each.sample.index: value for each, value in zip(group.valid, values, strict=True)}
        found += [_number(by_index.get(row.sample.index)) for row in rows_of_group]
    return found


def _candidates(rows: RoundRows, groups: _Groups) -> Iterable[ScoredGroup]:
    assert rows.scores is not None
    for group in groups:
        samples = [row.sample for row in group]
        scores = [rows.scores[sample.prompt_id, sample.index] for sample in samples]
        yield group_candidates(samples, scores)[0]


def _change(score: Score | None, direct: Score | None) -> int | None:
    """1 if an answer is better than the direct one, -1 if it is worse, 0 if it is as good; None if unknown."""
    if score is None or direct is None:
        return None
    if score.correct is not None and direct.correct is not None:
        return int(score.correct) - int(direct.correct)
    if score.value is None or direct.value is None:
        return None
    return (score.value > direct.value) - (score.value < direct.value)


_Pair = tuple[int, int | None, int | None, str, float | None]
"""Position of the prompt, indices of the chosen and the rejected sample (None if it isn't of this round), kind, margin.
"""


def _pairs(rows: RoundRows, position: Mapping[str, int]) -> list[_Pair] | None:
    if rows.pairs is None:
        return None
    found: list[_Pair] = []
    for row in rows.pairs:
        pair = row.pair
        if pair.prompt_id not in position:
            continue
        chosen: int | None = pair.chosen_index
        rejected: int | None = pair.rejected_index
        if rows.outputs is not None:
            chosen, rejected = (rows.outputs.get(key) for key in row.keys or ())
        if rows.side is not None:
            chosen, rejected = (0, None) if rows.side == "chosen" else (None, 0)
        found.append((position[pair.prompt_id], chosen, rejected, pair.kind, _number(pair.margin)))
    return found


def _reasons(rows: RoundRows, groups: _Groups, paired: Set[str], config: RunConfig) -> list[str | None]:
    """Why each prompt has no pair; None if it has one, or if that can't be determined."""
    has_pair = [group[0].sample.prompt_id in paired for group in groups]
    if isinstance(config.recipe, ThinkPo) or rows.scores is None:
        return [None if has else "not_paired" for has in has_pair]
    if isinstance(config.recipe, SelfTrain):
        scores, both = rows.scores, zip(groups, has_pair, strict=True)
        return [None if has else _without_contrast(scores, group) for group, has in both]
    margin = least_margin(config.pair, config.judge)
    found: list[str | None] = [None] * len(groups)
    left = [i for i, has in enumerate(has_pair) if not has]
    for i, group in zip(left, _candidates(rows, [groups[i] for i in left]), strict=True):
        controlled = group.controlled(rows.rho or 0.0, config.pair.thought_penalty)
        made = pair_indices(group, controlled, margin, all_agree=pairs_need_agreement(config.judge))
        # Of those that would make a pair, the stage drops what doesn't fit the trainer's length.
        found[i] = made if isinstance(made, str) else "too_long"
    return found


def _without_contrast(scores: Scores, group: Sequence[SampleRow]) -> str:
    """Why a question of self-training has no pair; `tasks.pair_by_answer` has the rule."""
    found = [(row.sample, scores[row.sample.prompt_id, row.sample.index]) for row in group]
    right = any(score.correct and sample.parse_error is None for sample, score in found)
    wrong = any(sample.parse_error is not None or score.correct is False for sample, score in found)
    if right and wrong:
        return "too_long"
    return "no_wrong_output" if right else "no_right_output"


def _number(value: float | None) -> float | None:
    """A number that JSON can hold, to six digits."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")


def facts_of(config: RunConfig) -> dict[str, Any]:
    """What the page says about how pairs are made."""
    recipe = config.recipe.kind
    return {
        "recipe": recipe,
        "judge": config.judge.kind,
        "evaluation_judge": config.evaluation.judge.kind,
        "min_margin": least_margin(config.pair, config.judge),
        "max_tokens": config.train.max_tokens,
        "thinks": config.prompt.variant != "direct",
    }


def detail_of_samples(rows: Sequence[SampleRow], prompts: Mapping[str, Prompt]) -> dict[str, Any]:
    """A shard's texts: its prompts as they are, and its outputs."""
    ids = list(dict.fromkeys(row.sample.prompt_id for row in rows))
    shown = ("instruction", "reference", "category", "difficulty", "constraints", "demonstration")
    texts = {}
    for prompt_id in ids:
        if (prompt := prompts.get(prompt_id)) is not None:
            values = {name: value for name in shown if (value := getattr(prompt, name)) is not None}
            texts[prompt_id] = {**values, "earlier": prompt.earlier}
    outputs: dict[str, dict[str, Any]] = {prompt_id: {} for prompt_id in ids}
    for row in rows:
        sample = row.sample
        found = {"thought": sample.thought, "response": sample.response}
        if sample.parse_error is not None:
            found["output"] = sample.output  # Its parts may leave out what broke the format.
        outputs[sample.prompt_id][str(sample.index)] = found
    return {"prompts": texts, "samples": outputs}


def detail_of_judgments(judgments: Iterable[Judgment]) -> dict[str, Any]:
    """A shard's judgments by prompt: sample, other sample, outcome, and what the judge based it on."""
    found: dict[str, list[Any]] = {}
    for judgment in judgments:
        row = [judgment.index, judgment.other_index, _number(judgment.outcome), _read(judgment.detail)]
        found.setdefault(judgment.prompt_id, []).append(row)
    return found


def _read(detail: str) -> Any:
    try:
        return json.loads(detail)
    except ValueError:
        return detail
