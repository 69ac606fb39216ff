"""Results in the formats that other tools read: AlpacaEval's, Arena-Hard's, and the official IFEval checker's.

Responses have no thoughts in them. Every file of judgments names the judge that made them, which isn't the official one
unless the profile says so.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tpo.method.arena_hard import Game, Style


@dataclass(frozen=True)
class Answered:
    """One prompt with the model's response and what it was compared with."""

    instruction: str
    """The prompt."""
    response: str
    """The model's response."""
    baseline: str | None = None
    """The baseline's."""
    preference: float | None = None
    """From 1 (the baseline is preferred) to 2 (the model is); None if it isn't known."""
    uid: str = ""
    """Arena-Hard's id of the question."""
    category: str | None = None
    """Its category."""
    games: Game = (None, None)
    """The verdicts in both orders; the baseline is first in the first."""
    replies: tuple[str, str] = ("", "")
    """The judge's reply in each."""
    style: Style | None = None
    """The style of the response."""


_NOT_ASKED = """<|im_start|>user
{instruction}
1: {output_1}
2: {output_2}
<|im_end|>
"""
"""A prompt that AlpacaEval's config has to name; all judgments are there, so no model is asked with it."""
Files = Mapping[str, bytes]
"""Contents by path below the folder of exports."""


def file_name(text: str) -> str:
    """A text as a file's name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "unnamed"


def alpaca_eval_files(answers: Sequence[Answered], *, model: str, baseline: str, judge: str) -> Files:
    """Both sides' outputs, the judgments as `annotations.json`, in which prompts without a preference are missing, and
    a config by which the tool takes them for those of one of its own annotators, which it then needn't call."""
    generator, annotator = file_name(model), file_name(judge)
    outputs = [{"instruction": a.instruction, "output": a.response, "generator": generator} for a in answers]
    reference = [{"instruction": a.instruction, "output": a.baseline, "generator": baseline} for a in answers]
    annotations = [
        {
            "instruction": a.instruction,
            "output_1": a.baseline,
            "generator_1": baseline,
            "output_2": a.response,
            "generator_2": generator,
            "annotator": annotator,
            "preference": a.preference,
            "index": index,
        }
        for index, a in enumerate(answers)
        if a.preference is not None
    ]
    config = {
        annotator: {
            "prompt_template": f"{annotator}/prompt.txt",
            "fn_completions": "openai_completions",
            "completions_kwargs": {"model_name": annotator},
            "fn_completion_parser": "logprob_parser",
            "batch_size": 1,
        }
    }
    return {
        f"{generator}/model_outputs.json": _json(outputs),
        f"{generator}/reference_outputs.json": _json(reference),
        f"{generator}/annotations.json": _json(annotations),
        f"{generator}/{annotator}/prompt.txt": _NOT_ASKED.encode(),
        f"{generator}/{annotator}/configs.yaml": (json.dumps(config, indent=1) + "\n").encode(),  # JSON is YAML
    }


def arena_hard_files(answers: Sequence[Answered], *, model: str, version: str, judge: str) -> Files:
    """Answers and judgments of the current repository's layout, and answers of the old one, below `old/`."""
    name, judge_name = file_name(model), file_name(judge)
    inside = f"data/arena-hard-{version}"
    current = [_answer(name, a) for a in answers]
    judged = [
        {
            "uid": a.uid,
            "category": a.category,
            "judge": judge_name,
            "model": name,
            "games": [
                {"score": score, "judgment": {"answer": reply}} for score, reply in zip(a.games, a.replies, strict=True)
            ],
        }
        for a in answers
    ]
    old_judged = [
        {
            "question_id": a.uid,
            "model": name,
            "judge": judge_name,
            "games": [
                {"user_prompt": "", "judgment": reply, "score": score}
                for score, reply in zip(a.games, a.replies, strict=True)
            ],
        }
        for a in answers
    ]
    return {
        f"{inside}/model_answer/{name}.jsonl": _lines(current),
        f"{inside}/model_judgment/{judge_name}/{name}.jsonl": _lines(judged),
        f"old/{inside}/model_answer/{name}.jsonl": _lines([_old_answer(name, a) for a in answers]),
        f"old/{inside}/model_judgment/{judge_name}/{name}.jsonl": _lines(old_judged),
    }


def ifeval_files(answers: Sequence[Answered], *, model: str) -> Files:
    """Responses as the official checker reads them."""
    rows = [{"prompt": a.instruction, "response": a.response} for a in answers]
    return {f"{file_name(model)}/input_response_data.jsonl": _lines(rows)}


def _answer(model: str, answered: Answered) -> dict[str, Any]:
    return {
        "uid": answered.uid,
        "ans_id": f"{model}-{answered.uid}",
        "model": model,
        "messages": [
            {"role": "user", "content": answered.instruction},
            {"role": "assistant", "content": {"answer": answered.response}},
        ],
        "tstamp": 0.0,
        "metadata": _metadata(answered),
    }


def _old_answer(model: str, answered: Answered) -> dict[str, Any]:
    metadata = _metadata(answered)
    turn = {"content": answered.response, "token_len": metadata.get("token_len", 0)}
    return {
        "question_id": answered.uid,
        "answer_id": f"{model}-{answered.uid}",
        "model_id": model,
        "choices": [{"index": 0, "turns": [turn]}],
        "tstamp": 0.0,
        "conv_metadata": metadata,
    }


def _metadata(answered: Answered) -> dict[str, Any]:
    if answered.style is None:
        return {}
    style = asdict(answered.style)
    return {
        "token_len": style["tokens"],
        "header_count": style["headers"],
        "list_count": style["lists"],
        "bold_count": style["bold"],
    }


def _json(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return (json.dumps(rows, ensure_ascii=False, indent=1) + "\n").encode("utf-8", "replace")


def _lines(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8", "replace")
