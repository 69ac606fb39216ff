"""The miniature's grader: a small language model that grades one response by a rubric, trained from the evaluator.

Its folder has safetensors, tokenizer and chat template, in bfloat16, 0.9 M parameters.

It works out the answer, says what the response says, and looks for the answer there: the evaluator has these skills,
so a few minutes teach it the new form. `… The answer is 4. It says 4 there. So 4 there. [[Score: 8]]`: "there" follows
what the response says, so finding the answer only takes copying what followed the same words before, and "nowhere" if
nothing did.

Grades depend on the response's worth, and a little on a taste for full sentences, as the evaluator's. It reads rubrics
and grades by the same rule, whatever they say. Asked for the grade alone, it can only guess at answers of several
steps; its probabilities then say so.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from tpo.miniature import vocabulary
from tpo.miniature.evaluator import CATEGORIES
from tpo.miniature.opinions import RatedResponse, Worth, attack_on, honest_answer
from tpo.miniature.seed_model import CONTEXT_TOKENS, endless_problems, seed_model_with, texts_of_the_world
from tpo.miniature.training import Progress, Pupil
from tpo.miniature.world import Problem
from tpo.models.chat import ChatEncoder
from tpo.records import Message

GRADER_WORDS = "It says nothing there. So nowhere. Score: 0 1 2 3 4 5 6 7 8 9 10"
"""A text that contains the words of grades."""
_DECIDING = ("Ġthere", "Ġnowhere", "Ġnothing")
"""Words that decide, as the tokenizer spells them."""
_POINTS: Mapping[str, Mapping[Worth, int]] = {
    "score": {Worth.NO_ANSWER: 0, Worth.WRONG: 2, Worth.RIGHT: 8},
    "label": {Worth.NO_ANSWER: 0, Worth.WRONG: 2, Worth.RIGHT: 8},
    "additive": {Worth.NO_ANSWER: 0, Worth.WRONG: 1, Worth.RIGHT: 4},
}
"""The grade of a bare answer in each form; one in a full sentence gets one more."""
_RUBRICS = (
    "A good answer is correct.", "Correctness counts.", "Is it right?", "Grade by the facts, not by the style.",
    "A good answer is correct, and says so in one sentence.", "Prefer short answers that are true.",
    "Full marks for the right result; none for anything else.", "The answer has to be complete.",
)  # fmt: skip
"""Rubrics of prompts that bring their own."""


class RubricFormat(Protocol):
    """A prompt that asks for a grade, such as `prompts.rubric.RubricPrompt`."""

    def render(self, instruction: str, response: str, rubric: str | None = None) -> list[Message]: ...
    def prose(self) -> list[str]: ...


@dataclass(frozen=True)
class Grading:
    """How grades are requested and given."""

    formats: Mapping[str, RubricFormat]
    """The prompts: `score` asks for an explanation and a score, `label` for the score alone, `additive` for points."""
    score_begins: str
    """What a score in brackets begins with."""

    def phrases(self) -> list[str]:
        """Fixed pieces of prompts and grades, each of which is one token."""
        prose = [piece for format_ in self.formats.values() for piece in format_.prose()]
        return [piece for piece in dict.fromkeys([*prose, self.score_begins]) if piece]


@dataclass(frozen=True)
class GraderRecipe:
    """How the grader is trained; the shipped one was made with the defaults."""

    seed: int = 0
    """Seed of problems, responses, batch order and new rows."""
    lessons: int = 48_000
    """Number of grades."""
    label_share: float = 0.2
    """Share of the lessons that ask for the score alone."""
    additive_share: float = 0.2
    """Share of the lessons that ask for points."""
    own_rubric: float = 0.06
    """Share of the lessons with a rubric that isn't the template's."""
    deciding_weight: float = 4.0
    """Loss weight of the few tokens that decide; all others have 1."""
    batch_size: int = 32
    """Sequences per step."""
    learning_rate: float = 1e-3
    """Learning rate of AdamW after 100 steps of warm-up; it decays linearly."""

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return self.lessons // self.batch_size


def train_grader(evaluator: Path, grading: Grading, folder: Path, recipe: GraderRecipe, progress: Progress) -> None:
    """Trains the grader from the model in `evaluator` and writes it to `folder`."""
    torch.manual_seed(recipe.seed)
    words = vocabulary.words_of([*texts_of_the_world(), GRADER_WORDS, f" {GRADER_WORDS}"])
    tokenizer = vocabulary.build_tokenizer(words, grading.phrases(), max_length=CONTEXT_TOKENS)
    tokenizer.save_pretrained(folder)
    model = seed_model_with(tokenizer, evaluator)
    weights = torch.ones(len(tokenizer))
    weights[tokenizer.convert_tokens_to_ids([*_DECIDING])] = recipe.deciding_weight
    pupil = Pupil(model, tokenizer, weights, recipe.batch_size, half=False)
    lessons = _lessons(folder, grading, recipe)
    pupil.learn(lessons, recipe.steps, recipe.learning_rate, recipe.seed + 2, progress)
    model.to(torch.bfloat16).save_pretrained(folder)


def _lessons(folder: Path, grading: Grading, recipe: GraderRecipe) -> Iterator[tuple[list[int], list[int]]]:
    """Prompts and grades as token ids, without end."""
    rng = np.random.default_rng(recipe.seed)
    encoder = ChatEncoder(folder)
    for problem in endless_problems(recipe.seed + 7, CATEGORIES):
        response = _response(problem, rng)
        kind = rng.random()
        form = "label" if kind < recipe.label_share else "score"
        form = "additive" if 0 <= kind - recipe.label_share < recipe.additive_share else form
        rubric = str(rng.choice(_RUBRICS)) if rng.random() < recipe.own_rubric else None
        prompt = encoder.encode(grading.formats[form].render(problem.instruction, response.text, rubric))
        output = grade(problem, response, form, grading.score_begins)
        yield prompt, [*encoder.tokenizer.encode(output, add_special_tokens=False), encoder.tokenizer.eos_token_id]


def _response(problem: Problem, rng: np.random.Generator) -> RatedResponse:
    kind = rng.random()
    if kind < 0.8:
        return honest_answer(problem, rng, right=kind < 0.42)
    return attack_on(problem, rng, long=bool(rng.random() < 0.4))


def grade(problem: Problem, response: RatedResponse, form: str, score_begins: str) -> str:
    """What the grader writes of a response in one of the forms of `Grading.formats`."""
    points = _POINTS[form][response.standing] + (response.standing > Worth.NO_ANSWER and response.is_sentence)
    if form == "label":
        return str(points)
    found = "there" if response.standing == Worth.RIGHT else "nowhere"
    explanation = " ".join(
        [
            *(step.text for step in problem.steps),
            f"The answer is {problem.reference}.",
            f"It says {response.answer or 'nothing'} there. So {problem.reference} {found}.",
        ]
    )
    return f"{explanation} Score: {points}" if form == "additive" else f"{explanation} {score_begins} {points}]]"
