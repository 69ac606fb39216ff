"""Reward models as judges: torch reads each response as a chat, and a head gives a number.

The chat of a conversation and a response to it follows the model's own template; the score is the number, in its unit.
Text in a response can't become structure. A chat that is too long, or gets no finite number, is unscored; a health
limit counts those.
"""

import json
import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from judges.base import Group, Spend, uncounted
from tpo.config.judges import ArmoRMJudge, RewardModelJudge
from tpo.config.resources import ClusterConfig, JudgeEngineConfig
from tpo.engines.engines import engines_of_run
from tpo.engines.inference.reply import TokenCount
from tpo.engines.inference.reward_reader import Chat, Load, Reader, Values
from tpo.errors import InputError
from tpo.method.output_score import OutputScore
from tpo.models.chat import ChatEncoder
from tpo.models.files import read_json, some_of
from tpo.models.folder import check_model_folder
from tpo.models.tensors import read_tensors
from tpo.records import Judgment, Message, Score, read_turns
from tpo.storage.journal import Journal

_HEAD = "score.weight"


class ChatScorer(Protocol):
    """Reads chats: a `ScorerPool`, or a `Scorer` in this process."""

    def score(self, groups: Iterable[Sequence[Chat]], /) -> Iterable[list[Values]]:
        """The values of each group's chats, in order."""
        ...


@dataclass(frozen=True)
class _Unscored:
    """Why a response has no score."""

    reason: str
    """One word, for counting."""
    facts: Mapping[str, object]
    """The details."""


class ChatJudge(ABC):
    """Base of judges that read each response by itself, as a chat; by default the first value is the score.

    Args:
        config: The model.
        engine: Its devices and dtype.
        cluster: The Ray cluster.
        scorer: Reads the chats; by default the run's pool for this model.
    """

    def __init__(
        self,
        config: RewardModelJudge | ArmoRMJudge,
        engine: JudgeEngineConfig,
        cluster: ClusterConfig,
        *,
        scorer: ChatScorer | None = None,
    ) -> None:
        self._folder = config.folder
        self._max_tokens = config.max_tokens
        self._engine, self._cluster = engine, cluster
        self._given_scorer = scorer

    def _scorer(self) -> ChatScorer:
        if self._given_scorer is not None:
            return self._given_scorer
        return engines_of_run().scorer_pool(self._loader(), self._folder, self._engine, self._cluster)

    def judge(
        self, groups: Sequence[Group], journal: Journal | None = None, spend: Spend = uncounted
    ) -> Iterator[list[Judgment]]:
        """One reading per response; None, with the reason, for a chat that is too long or gets no finite number.

        Raises `InputError` if this judge can't use the model's folder or chat template.
        """
        longest = min(self._max_tokens, self._check())
        self.chat_of("Say hello.", "Hello.")
        asked: deque[list[Chat | _Unscored]] = deque()

        def chats() -> Iterator[list[Chat]]:
            for group in groups:
                earlier = read_turns(group.history)
                asked.append(
                    [self._try_chat(group.instruction, response.text, longest, earlier) for response in group.responses]
                )
                yield [chat for chat in asked[-1] if isinstance(chat, Chat)]

        for group, values in zip(groups, self._scorer().score(chats()), strict=True):
            found = iter(values)
            readings = [(chat, next(found) if isinstance(chat, Chat) else []) for chat in asked.popleft()]
            for chat, _ in readings:
                if isinstance(chat, Chat):
                    spend(TokenCount(len(chat.token_ids)))
            yield [
                self._judgment(group.prompt_id, response.index, *reading)
                for response, reading in zip(group.responses, readings, strict=True)
            ]

    def score(self, group: Group, judgments: Sequence[Judgment]) -> list[Score]:
        """The readings as they are."""
        by_index = {judgment.index: judgment for judgment in judgments}
        return [
            Score(
                prompt_id=group.prompt_id,
                index=response.index,
                value=by_index[response.index].outcome,
                unscored=json.loads(by_index[response.index].detail).get("unscored"),
                correct=None,
                response_chars=len(response.text),
            )
            for response in group.responses
        ]

    def chat_of(self, instruction: str, response: str, earlier: Sequence[Message] = ()) -> Chat:
        """The chat of an instruction, after the turns `earlier` in the conversation, and a response, without a
        generation prompt, and the positions that the model's heads read.

        Raises `InputError` if the template rewrites the texts or the heads find no position to read.
        """
        turns = [*earlier, Message(role="user", content=instruction), Message(role="assistant", content=response)]
        token_ids = tuple(self._encoder.encode(turns))
        return Chat(token_ids, self._positions(token_ids))

    @cached_property
    def _encoder(self) -> ChatEncoder:
        return ChatEncoder(self._folder, generation_prompt=False)

    def _try_chat(self, instruction: str, response: str, longest: int, earlier: Sequence[Message]) -> Chat | _Unscored:
        try:
            chat = self.chat_of(instruction, response, earlier)
        except InputError as error:
            return _Unscored("not_encodable", {"error": str(error)})
        tokens = len(chat.token_ids)
        return chat if tokens <= longest else _Unscored("too_long", {"tokens": tokens, "limit": longest})

    def _judgment(self, prompt_id: str, index: int, chat: Chat | _Unscored, values: Values) -> Judgment:
        if isinstance(chat, Chat) and not all(map(math.isfinite, values)):
            chat = _Unscored("not_finite", {"tokens": len(chat.token_ids)})
        if isinstance(chat, _Unscored):
            return Judgment(prompt_id, index, None, None, json.dumps({"unscored": chat.reason, **chat.facts}))
        return Judgment(prompt_id, index, None, self._score(values), json.dumps(self._detail(chat, values)))

    def _score(self, values: Values) -> float:
        """The score from the heads' values."""
        return values[0]

    @staticmethod
    @abstractmethod
    def _loader() -> Load:
        """The function that loads the model in its own process."""

    @abstractmethod
    def _check(self) -> int:
        """The model's context in tokens, after checking its folder."""

    @abstractmethod
    def _positions(self, token_ids: Sequence[int]) -> tuple[int, ...]:
        """The positions in a chat that the heads read."""

    @abstractmethod
    def _detail(self, chat: Chat, values: Values) -> Mapping[str, object]:
        """Details to store with the score."""


class RewardModel(ChatJudge):
    """Any sequence-classification model of transformers that is a decoder; of several outputs, a rule makes a score."""

    def __init__(
        self,
        config: RewardModelJudge,
        engine: JudgeEngineConfig,
        cluster: ClusterConfig,
        *,
        scorer: ChatScorer | None = None,
    ) -> None:
        super().__init__(config, engine, cluster, scorer=scorer)
        self._rule = config.score

    @staticmethod
    def _loader() -> Load:
        return load_reward_model

    def _check(self) -> int:
        return check_reward_folder(self._folder, self._rule)

    @cached_property
    def _pad_token_id(self) -> int | None:
        """The model's padding, as transformers has it: a config may leave it to its class."""
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(self._folder, local_files_only=True, trust_remote_code=False)
        pad: int | None = config.get_text_config().pad_token_id
        return pad

    @cached_property
    def _outputs(self) -> "RewardOutputs":
        return read_outputs(self._folder, self._rule)

    def _positions(self, token_ids: Sequence[int]) -> tuple[int, ...]:
        """The last token that isn't the model's padding, which is where transformers reads, and training has read."""
        places = (i for i in reversed(range(len(token_ids))) if token_ids[i] != self._pad_token_id)
        return (next(places, 0),)

    def _score(self, values: Values) -> float:
        return self._outputs.score(values)

    def _detail(self, chat: Chat, values: Values) -> Mapping[str, object]:
        if len(values) == 1:
            return {"tokens": len(chat.token_ids)}
        return {"tokens": len(chat.token_ids), "outputs": [float(f"{value:.6g}") for value in values]}


@dataclass(frozen=True)
class RewardOutputs:
    """A model's outputs, and what of them is the score."""

    rule: OutputScore
    """The rule."""
    places: tuple[int, ...]
    """The outputs that it reads."""
    independent: bool
    """Whether each output is a probability by itself (`problem_type` is `multi_label_classification`)."""

    def score(self, logits: Values) -> float:
        """The score."""
        return self.rule.of(logits, self.places, independent=self.independent)


def load_reward_model(folder: Path, dtype: str) -> Reader:
    """The model in `folder`, its decoder in `dtype` and its head in float32, as the file has it; its values are all
    logits.

    Raises `InputError` if tensors are missing: transformers would make them up.
    """
    import torch
    from safetensors import safe_open
    from transformers import AutoModelForSequenceClassification

    model, loading = AutoModelForSequenceClassification.from_pretrained(
        folder,
        dtype=getattr(torch, dtype),
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    if loading["missing_keys"]:
        raise InputError(f"{folder} lacks tensors of its model: {some_of(loading['missing_keys'])}")
    if model.base_model is model or not isinstance(getattr(model, "score", None), torch.nn.Linear):
        raise InputError(f"{folder} is a {type(model).__name__}, expected a decoder with a linear head named score")
    head = model.score.float()
    with safe_open(read_tensors(folder)[_HEAD].file, "pt") as tensors, torch.no_grad():
        head.weight.copy_(tensors.get_tensor(_HEAD))  # `from_pretrained` has rounded it to `dtype`
    model.eval().requires_grad_(False)
    return Reader(model, model.base_model, lambda hidden: head(hidden[:, 0].float()))


def check_reward_folder(folder: Path, rule: str = "logit") -> int:
    """The model's context in tokens, after checking that the folder is a sequence-classification model that is a
    decoder, with the outputs that the `rule` for its score reads.

    Loads nothing. Raises `InputError` that says what was found.
    """
    context = check_model_folder(folder)
    config = read_json(folder / "config.json")
    names = config.get("architectures") or ["nothing"]
    if not str(names[0]).endswith("ForSequenceClassification"):
        raise InputError(
            f"{folder} is a {names[0]} (architectures in config.json), expected a sequence-classification model, "
            "…ForSequenceClassification: a reward model with its own code, or one that is read from a language model's "
            "logits, isn't one"
        )
    read_outputs(folder, rule)
    return context


def read_outputs(folder: Path, rule: str) -> RewardOutputs:
    """The outputs of a model, checked against the `rule` for its score. Raises `InputError` that says what was
    found."""
    config, head = read_json(folder / "config.json"), read_tensors(folder).get(_HEAD)
    if head is None:
        raise InputError(
            f"{folder} has no tensor {_HEAD}, expected a decoder with a linear head of that name: encoders, and heads "
            "of several layers, aren't read here"
        )
    names = config.get("id2label")
    count = config.get("num_labels") or len(names or ("LABEL_0", "LABEL_1"))
    if count != head.shape[0]:
        raise InputError(
            f"{folder} has {head.shape[0]} outputs ({_HEAD}) and {count} labels (id2label in config.json), expected "
            "one label for each output"
        )
    kind, parsed = config.get("problem_type"), OutputScore.parse(rule)
    if parsed.rule == "probability" and kind == "regression":
        raise InputError(
            f"{folder} is a regression (problem_type in config.json), whose outputs aren't probabilities: set "
            "judge.score to logit or difference"
        )
    labels = {place: f"LABEL_{place}" for place in range(count)}  # what transformers leaves out of config.json
    labels |= {int(place): str(name) for place, name in names.items()} if isinstance(names, dict) else {}
    try:
        places = parsed.places(count, labels)
    except ValueError as error:
        raise InputError(f"{folder} {error}") from error
    return RewardOutputs(parsed, places, kind == "multi_label_classification")
