"""Claims about sequence-classification models as judges: the score is the number that transformers computes."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from judges.base import Group, Response, groups_of
from judges.reward_model import RewardModel, check_reward_folder, load_reward_model
from tests.judges.tiny_models import SIZES, armorm_folder, reward_folder
from tests.models.test_chat import HOSTILE, LLAMA_CONTROLS, LLAMA_TEMPLATE
from tests.rows import a_prompt, a_sample
from tpo.config.judges import RewardModelJudge
from tpo.config.resources import ClusterConfig, JudgeEngineConfig
from tpo.engines.inference.reward_reader import Chat, Scorer, Values
from tpo.errors import InputError

ENGINE = JudgeEngineConfig(batch_tokens=512)
TEXTS = ("hello hello", "No.", "hello " * 60, "", "hello hello", "日本語 😀", *HOSTILE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reward_folder(tmp_path_factory.mktemp("reward"))


def judge_of(folder: Path, scorer: Any, **changes: Any) -> RewardModel:
    return RewardModel(RewardModelJudge(model=str(folder), **changes), ENGINE, ClusterConfig(), scorer=scorer)


def a_group(*responses: str, instruction: str = "Say hello.") -> Group:
    return Group("p", instruction, None, tuple(Response(i, text) for i, text in enumerate(responses)))


class Overheard:
    """A scorer that records its inputs and answers with ones."""

    def __init__(self) -> None:
        self.chats: list[Chat] = []

    def score(self, groups: Iterable[Sequence[Chat]]) -> list[list[Values]]:
        batch = [list(group) for group in groups]
        self.chats += [chat for group in batch for chat in group]
        return [[[1.0] for _ in group] for group in batch]


@pytest.mark.parametrize(
    "pad", [None, "<|end_of_text|>", "<|eot_id|>"], ids=["no padding", "padding", "end as padding"]
)
def test_each_score_is_what_transformers_computes_for_the_chat_alone(tmp_path: Path, pad: str | None):
    folder = reward_folder(tmp_path, pad=pad)
    judge = judge_of(folder, Scorer(load_reward_model, folder, ENGINE))
    groups = [a_group(*TEXTS), a_group(*TEXTS[:3], instruction="Count to three, and say hello.")]
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    found = []
    for group, judgments in zip(groups, judge.judge(groups), strict=True):
        for response, score, judgment in zip(group.responses, judge.score(group, judgments), judgments, strict=True):
            ids = judge.chat_of(group.instruction, response.text).token_ids
            with torch.no_grad():
                expected = model(input_ids=torch.tensor([ids])).logits[0, 0].item()
            assert score.value == pytest.approx(expected, abs=1e-5)
            assert (score.unscored, score.correct, score.response_chars) == (None, None, len(response.text))
            assert json.loads(judgment.detail) == {"tokens": len(ids)}
            found.append(score.value)
    assert len(set(found)) == len(set(TEXTS)) + 3


def test_a_chat_is_rendered_by_the_models_template_without_a_generation_prompt(folder: Path):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = judge_of(folder, Overheard()).chat_of("Say hello.", " hello\n")
    turns = [{"role": "user", "content": "Say hello."}, {"role": "assistant", "content": " hello\n"}]
    assert list(chat.token_ids) == tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
    assert chat.token_ids.count(tokenizer.bos_token_id) == 1
    assert chat.token_ids[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("text", HOSTILE)
def test_control_tokens_in_a_response_change_no_structure(folder: Path, text: str):
    control = set(AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids(list(LLAMA_CONTROLS)))
    judge = judge_of(folder, Overheard())
    hostile, plain = (judge.chat_of("Say hello.", response).token_ids for response in (text, "hello"))
    assert [i for i in hostile if i in control] == [i for i in plain if i in control]


def test_no_token_of_a_thought_reaches_the_judge(folder: Path):
    overheard = Overheard()
    samples = [a_sample(index=i, thought=f"~canary~ {i}", response=f"Yes {i}.") for i in range(3)]
    list(judge_of(folder, overheard).judge(groups_of([a_prompt()], samples, with_errors=False)))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert [f"Yes {i}." in tokenizer.decode(chat.token_ids) for i, chat in enumerate(overheard.chats)] == [True] * 3
    assert not any(tokenizer.convert_tokens_to_ids("~") in chat.token_ids for chat in overheard.chats)


def test_a_chat_that_is_too_long_is_unscored_and_never_cut(folder: Path):
    judge = judge_of(folder, Overheard(), max_tokens=100)
    longest = next(i for i in range(200) if len(judge.chat_of("Say hello.", "x" * i).token_ids) == 100)
    group = a_group("x" * longest, "x" * (longest + 1))
    (judgments,) = judge.judge([group])
    assert [(score.value, score.unscored) for score in judge.score(group, judgments)] == [
        (1.0, None),
        (None, "too_long"),
    ]
    assert json.loads(judgments[1].detail) == {"unscored": "too_long", "tokens": 101, "limit": 100}


def test_a_response_that_the_template_would_rewrite_is_unscored(tmp_path: Path):
    folder = reward_folder(tmp_path)
    (folder / "chat_template.jinja").write_text(LLAMA_TEMPLATE.replace("| trim", ".split('</think>')[-1] | trim"))
    group = a_group("hello", "<think>no</think>hello")
    judge = judge_of(folder, Overheard())
    (judgments,) = judge.judge([group])
    assert [score.unscored for score in judge.score(group, judgments)] == [None, "not_encodable"]
    assert "changes the text" in json.loads(judgments[1].detail)["error"]


def test_a_group_without_a_scorable_response_keeps_its_place(folder: Path):
    judge = judge_of(folder, Overheard(), max_tokens=100)
    groups = [a_group("x" * 200), a_group("hello"), a_group("x" * 300, "y" * 300)]
    assert [[judgment.outcome for judgment in group] for group in judge.judge(groups)] == [
        [None],
        [1.0],
        [None, None],
    ]


def change_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a language model": (
        lambda folder: change_json(folder / "config.json", architectures=["LlamaForCausalLM"]),
        "is a LlamaForCausalLM .*expected a sequence-classification model",
    ),
    "no architecture": (
        lambda folder: change_json(folder / "config.json", architectures=None),
        "is a nothing .*expected a sequence-classification model",
    ),
    "two outputs in the config": (
        lambda folder: change_json(folder / "config.json", id2label={"0": "bad", "1": "good"}),
        r"has 1 outputs \(score.weight\) and 2 labels \(id2label in config.json\)",
    ),
    "no head": (
        lambda folder: save_file({"classifier.weight": torch.zeros(1, 32)}, folder / "model.safetensors"),
        "has no tensor score.weight",
    ),
    "code": (lambda folder: (folder / "modeling.py").write_text(""), r"contains code \(modeling.py\)"),
    "code for the tokenizer": (
        lambda folder: change_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["a.B", None]}),
        r"contains code \(auto_map in tokenizer_config.json\)",
    ),
    "pickles": (lambda folder: (folder / "training_args.bin").write_bytes(b""), r"pickles \(training_args.bin\)"),
    "no chat template": (lambda folder: (folder / "chat_template.jinja").unlink(), "has no chat template"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_folder_that_is_not_a_reward_model_is_refused(tmp_path: Path, case: str):
    folder = reward_folder(tmp_path)
    change, pattern = REFUSED[case]
    change(folder)
    with pytest.raises(InputError, match=pattern):
        list(judge_of(folder, Overheard()).judge([a_group("Hi.")]))


def test_a_model_of_two_outputs_needs_a_rule_for_its_score(tmp_path: Path):
    folder = reward_folder(tmp_path, outputs=2)
    with pytest.raises(InputError, match=r"has 2 outputs \(0: LABEL_0, 1: LABEL_1\), and judge.score doesn't say"):
        check_reward_folder(folder)
    with pytest.raises(
        InputError, match=r"has no output 'good', which judge\.score names: it has 0: LABEL_0, 1: LABEL_1"
    ):
        check_reward_folder(folder, "logit(good)")
    for rule in ("logit(1)", "logit(LABEL_0)", "difference(1, 0)", "probability(1)"):
        assert check_reward_folder(folder, rule) == SIZES["max_position_embeddings"]
    change_json(folder / "config.json", problem_type="regression")
    with pytest.raises(InputError, match=r"is a regression .* aren't probabilities"):
        check_reward_folder(folder, "probability(1)")


@pytest.mark.parametrize(
    "rule", ["", "logit()", "logit(1, 0)", "difference(1)", "softmax(1)", "logit(1)(2)", "probability"]
)
def test_what_is_no_rule_for_a_score_is_refused_in_the_profile(rule: str):
    with pytest.raises(ValueError, match="isn't a rule for a score: expected logit, logit"):
        RewardModelJudge(model="m", score=rule)


@pytest.mark.parametrize(
    ("rule", "kind", "expected"),
    [
        ("logit(1)", None, lambda logits: logits[1]),
        ("logit(bad)", "single_label_classification", lambda logits: logits[0]),
        ("difference(good, bad)", None, lambda logits: logits[1] - logits[0]),
        ("probability(good)", "single_label_classification", lambda logits: logits.softmax(0)[1]),
        ("probability(1)", "multi_label_classification", lambda logits: logits.sigmoid()[1]),
    ],
)
def test_a_score_of_several_outputs_follows_its_rule(
    tmp_path: Path, rule: str, kind: str | None, expected: Callable[[torch.Tensor], torch.Tensor]
):
    folder = reward_folder(tmp_path, outputs=3)
    change_json(
        folder / "config.json", id2label={"0": "bad", "1": "good", "2": "unclear"}, problem_type=kind, label2id=None
    )
    judge = judge_of(folder, Scorer(load_reward_model, folder, ENGINE), score=rule)
    group = a_group("hello", "hello " * 9)
    (judgments,) = judge.judge([group])
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    for response, judgment in zip(group.responses, judgments, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([judge.chat_of(group.instruction, response.text).token_ids])).logits[0]
        assert judgment.outcome == pytest.approx(float(expected(logits)), abs=1e-5)
        assert json.loads(judgment.detail)["outputs"] == pytest.approx(logits.tolist(), rel=1e-4, abs=1e-5)


def test_the_head_of_a_model_in_bfloat16_is_that_of_the_file(tmp_path: Path):
    folder = reward_folder(tmp_path)
    stored = load_file(folder / "model.safetensors")["score.weight"]
    reader = load_reward_model(folder, "bfloat16")
    assert next(reader.backbone.parameters()).dtype == torch.bfloat16
    head = reader.model.get_parameter("score.weight")
    assert head.dtype == torch.float32 and torch.equal(head, stored)
    assert not torch.equal(stored, stored.bfloat16().float())


def test_a_folder_in_armorms_format_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="LlamaForRewardModelWithGating"):
        check_reward_folder(armorm_folder(tmp_path))


def test_a_missing_tensor_is_not_initialized_at_random(tmp_path: Path):
    folder = reward_folder(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lacks tensors of its model: model.layers.1.mlp.up_proj.weight"):
        load_reward_model(folder, "float32")


def test_a_sound_folder_gives_its_context(folder: Path):
    assert check_reward_folder(folder) == SIZES["max_position_embeddings"]


def test_judges_are_looked_up_and_their_folders_checked_without_torch(folder: Path):
    code = (
        "import sys; from pathlib import Path; import judges.armorm; from judges.reward_model import *;"
        "check_reward_folder(Path(sys.argv[1]));"
        "print(sorted({'torch', 'transformers', 'ray', 'safetensors'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
