"""The cards of a published model and of its pairs: README.md files with metadata for model hubs."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from flows.publication.finished_model import FinishedModel
from flows.publication.lineage import Lineage, Training
from flows.publication.model_files import PARSER_PLACE, has_parser, native_parser
from tpo.report.model_table import TOKENS
from tpo.report.summary import Interval
from tpo.report.table import PERCENT, ScoreScale, fixed, scale_of

_TAGS: Mapping[str, tuple[str, ...]] = {
    "tpo": ("thought-preference-optimization", "tpo", "reasoning", "dpo", "arxiv:2410.10630"),
    "thinkpo": ("thinkpo", "reasoning", "dpo", "arxiv:2502.13173"),
    "self_train": ("self-training", "reasoning", "arxiv:2407.18248"),
}
_PAPERS = {
    "tpo": "[Thought Preference Optimization](https://arxiv.org/abs/2410.10630)",
    "thinkpo": "[ThinkPO](https://arxiv.org/abs/2502.13173)",
    "self_train": "[self-training with DPO](https://arxiv.org/abs/2407.18248)",
}
_LOSSES = {"dpo": "DPO", "ipo": "IPO", "irpo": "IRPO (DPO with an NLL term)", "apo_zero": "APO-zero"}
_QUOTED = str.maketrans({character: f"\\{character}" for character in "\\`*_{}[]<>#|"})


def model_card(model: FinishedModel, lineage: Lineage, *, pairs: bool) -> str:
    """The README of a published model; `pairs` says whether its pairs are published with it."""
    base = lineage.base
    head: dict[str, Any] = {
        **({"base_model": base.name, "base_model_relation": "finetune"} if base.on_hub else {}),
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        **base.licence,
        **({"datasets": sets} if (sets := [name for name in lineage.data if name.count("/") == 1]) else {}),
        "tags": [*_tags(lineage), *(["lora"] if lineage.training.get("lora") else [])],
    }
    return _rendered(
        "model_card.md.jinja",
        head,
        lineage=lineage,
        pairs=pairs,
        parser=PARSER_PLACE if has_parser(model.prompt) else None,
        native_parser=native_parser(model.encoder.thinking) if model.prompt.thinks_natively else None,
        thinks=model.prompt.thinks,
        switch=model.encoder.thinking.switch,
        forced=model.config.sample.max_thought_tokens,
        rows=_table_rows(lineage) if lineage.recipe != "tpo" else _number_rows(lineage),
        paper=_PAPERS[lineage.recipe],
        settings=_settings(lineage),
        loss=_LOSSES.get(str(lineage.training["loss"]), str(lineage.training["loss"])) if _is_paired(lineage) else None,
    )


def pairs_card(model: FinishedModel, lineage: Lineage, pairs: int) -> str:
    """The README of the pairs that a model was trained on."""
    head: dict[str, Any] = {
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "train-*.parquet"}]}],
        "task_categories": ["text-generation"],
        "tags": [*_tags(lineage), "preference", "trl"],
    }
    paper = _PAPERS[lineage.recipe]
    return _rendered("pairs_card.md.jinja", head, lineage=lineage, model=model.name, count=pairs, paper=paper)


def _tags(lineage: Lineage) -> list[str]:
    """The tags of a recipe, and that of DPO if self-training had any."""
    return [*_TAGS[lineage.recipe], *(["dpo"] if lineage.recipe == "self_train" and _is_paired(lineage) else [])]


def _is_paired(lineage: Lineage) -> bool:
    """Whether the model, or one that wrote for it, was trained on pairs."""
    return lineage.recipe == "tpo" or any(isinstance(step, Training) and step.kind == "dpo" for step in lineage.steps)


def _rendered(template: str, head: Mapping[str, Any], **values: Any) -> str:
    environment = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined, autoescape=False, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters["text"] = _text
    environment.filters["code"] = _code
    source = Path(__file__).with_name(template).read_text(encoding="utf-8")
    # JSON is valid YAML and avoids its quoting rules.
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in head.items()]
    return "\n".join(["---", *lines, "---", ""]) + environment.from_string(source).render(**values)


def _text(value: object) -> str:
    """A user's text, escaped so that nothing in it becomes Markdown."""
    return " ".join(str(value).split()).translate(_QUOTED)


def _code(value: object) -> str:
    """A value as Markdown code on one line."""
    shown = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else json.dumps(value)
    ticks = "``" if "`" in shown else "`"
    return f"{ticks} {shown} {ticks}" if ticks == "``" else f"`{shown}`"


def _number_rows(lineage: Lineage) -> list[list[str]]:
    scores = [row["score"] for row in lineage.numbers if row["score"] is not None]
    scale = scale_of(number for found in scores for number in (found.value, found.low, found.high))
    return [
        [
            str(row["model"]).replace("_", "\\_"),
            _interval(scale, row["score"]),
            _interval(PERCENT, row["win_rate"]),
            _interval(scale, row["gain"], signed=True),
            _interval(scale, row["gain_over_direct"], signed=True),
            fixed(100 * row["parse_error_rate"], 1),
            f"{row['thought_chars']:.0f} / {row['response_chars']:.0f}",
        ]
        for row in lineage.numbers
    ]


def _table_rows(lineage: Lineage) -> list[list[str]]:
    scores = [row["score"] for row in lineage.numbers if row["score"] is not None]
    scale = scale_of(number for found in scores for number in (found.value, found.low, found.high))
    return [
        [
            _text(row["model"]),
            _interval(scale, row["score"]),
            "–" if row["below"] is None else _text(row["below"]),
            _interval(scale, row["gain"], signed=True),
            _interval(TOKENS, row["tokens"]),
            fixed(100 * row["error_rate"], 1),
        ]
        for row in lineage.numbers
    ]


def _interval(scale: ScoreScale, found: Interval | None, *, signed: bool = False) -> str:
    return scale.interval(found, signed=signed)


def _settings(lineage: Lineage) -> list[tuple[str, str]]:
    """The settings of each part, as one line each."""
    parts: Sequence[tuple[str, Mapping[str, Any]]] = (
        ("sampling", lineage.sampling),
        ("pairs", lineage.pairing),
        *([("training", lineage.training)] if _is_paired(lineage) else []),
        *([("fine-tuning", lineage.fine_tuning)] if lineage.fine_tuning is not None else []),
    )
    return [(name, ", ".join(f"{key} {_plain(value)}" for key, value in values.items())) for name, values in parts]


def _plain(value: object) -> str:
    return _text("–" if value is None else value if isinstance(value, str) else json.dumps(value))


def as_json(lineage: Lineage) -> dict[str, Any]:
    """A lineage as a JSON object."""
    return dataclasses.asdict(lineage)
