"""Claims about ArmoRM: its numbers are the published method's, and folders of other models are refused."""

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

from judges.armorm import ArmoRMScorer, judge_check, load_armorm_reader
from judges.base import Group, Response, groups_of
from tests.judges.tiny_models import GATE, SIZES, armorm_folder, tiny_armorm
from tests.models.test_chat import HOSTILE, LLAMA_CONTROLS, LLAMA_TEMPLATE, LLAMA_WORDS
from tests.rows import a_prompt, a_sample
from tpo.config.judges import ArmoRMJudge
from tpo.config.resources import ClusterConfig, JudgeEngineConfig
from tpo.engines.inference.reward_reader import Chat, Scorer, Values
from tpo.errors import InputError
from tpo.models.armorm import ArmoRM, load_armorm, save_armorm
from tpo.models.armorm_format import ANSWER_HEADER, ATTRIBUTES, check_armorm_folder, check_armorm_weights, gate_index
from tpo.models.chat import ChatEncoder

ENGINE = JudgeEngineConfig(batch_tokens=512)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return armorm_folder(tmp_path_factory.mktemp("armorm"))


@pytest.fixture(scope="module")
def scorer(folder: Path) -> Scorer:
    return Scorer(load_armorm_reader, folder, ENGINE)


def judge_of(folder: Path, scorer: Any, **changes: Any) -> ArmoRMScorer:
    return ArmoRMScorer(ArmoRMJudge(model=str(folder), **changes), ENGINE, ClusterConfig(), scorer=scorer)


def a_group(*responses: str, instruction: str = "Say hello.") -> Group:
    return Group("p", instruction, None, tuple(Response(i, text) for i, text in enumerate(responses)))


class Overheard:
    """A scorer that records its inputs and answers with zeros."""

    def __init__(self) -> None:
        self.chats: list[Chat] = []

    def score(self, groups: Iterable[Sequence[Chat]]) -> list[list[Values]]:
        batch = [list(group) for group in groups]
        self.chats += [chat for group in batch for chat in group]
        return [[[0.0] * 39 for _ in group] for group in batch]


def test_the_heads_give_the_golden_numbers():
    model = tiny_armorm(objectives=3, gating_n_hidden=1)
    model.reward_transform_matrix.copy_(torch.eye(3))
    model.reward_transform_matrix[2] -= torch.tensor([0.1, 0.25, 1.0])
    for parameter in model.gating.layers.parameters():
        parameter.data.zero_()
    model.gating.get_parameter("layers.1.bias").data += torch.tensor([12.0, -4.0, 3.0])
    model.regression_layer.weight.data[:, 0] = torch.tensor([0.6, 0.5, 0.7])
    last = torch.zeros(1, SIZES["hidden_size"])
    last[0, 0] = 1
    found = model.heads(last, torch.randn(1, SIZES["hidden_size"]))
    assert found.gating[0].tolist() == pytest.approx([0.932565, 0.188282, 0.379153], abs=1e-6)
    assert found.coefficients[0].tolist() == pytest.approx([0.932565, 0.188282, -0.140327], abs=1e-6)
    assert found.score.item() == pytest.approx(0.555451, abs=1e-6)


def by_hand(model: ArmoRM, ids: Sequence[int], gate: int) -> tuple[np.ndarray, ...]:
    """The forward pass as in the paper's code: transformers' Llama, one chat, then plain arrays."""
    llama = LlamaModel(model.config).eval()
    llama.load_state_dict(model.model.state_dict())
    tensors = {name: tensor.double().numpy() for name, tensor in model.state_dict().items() if name[:6] != "model."}
    with torch.no_grad():
        hidden = llama(input_ids=torch.tensor([list(ids)])).last_hidden_state[0].double().numpy()
    rewards = tensors["regression_layer.weight"] @ hidden[-1]
    inner = hidden[gate]
    for i in range(3):
        inner = np.maximum(tensors[f"gating.layers.{i}.weight"] @ inner + tensors[f"gating.layers.{i}.bias"], 0)
    logits = (tensors["gating.layers.3.weight"] @ inner + tensors["gating.layers.3.bias"]) / 10
    gating = tensors["gating.logit_scale"] * np.exp(logits) / np.exp(logits).sum()
    score = (gating * (rewards @ tensors["reward_transform_matrix"])).sum()
    return rewards, gating, np.array([score])


def test_a_padded_batch_matches_the_method_applied_to_each_chat():
    model = tiny_armorm()
    generator = torch.Generator().manual_seed(5)
    chats = [torch.randint(300, (length,), generator=generator).tolist() for length in (20, 7, 13)]
    gates = [4, 3, 12]
    ids, mask = torch.full((3, 20), 299), torch.zeros(3, 20, dtype=torch.long)
    for row, chat in enumerate(chats):
        ids[row, : len(chat)], mask[row, : len(chat)] = torch.tensor(chat), 1
    with torch.no_grad():
        found = model(ids, mask, torch.tensor(gates))
    for row, chat in enumerate(chats):
        rewards, gating, score = by_hand(model, chat, gates[row])
        np.testing.assert_allclose(found.rewards[row], rewards, atol=1e-5)
        np.testing.assert_allclose(found.gating[row], gating, atol=1e-5)
        np.testing.assert_allclose(found.score[row], score[0], atol=1e-5)
    assert np.ptp(found.gating[:, 0].numpy()) > 1e-3


def test_the_judge_matches_the_method_applied_directly(folder: Path, scorer: Scorer):
    model = load_armorm(folder, "float32")
    group = a_group("hello hello", "No.", "x" * 90, "hello hello", instruction="Say hell, or hello!")
    judge = judge_of(folder, scorer)
    (judgments,) = judge.judge([group])
    scores = judge.score(group, judgments)
    for response, judgment, score in zip(group.responses, judgments, scores, strict=True):
        chat = judge.chat_of(group.instruction, response.text)
        rewards, gating, by_the_method = by_hand(model, chat.token_ids, chat.positions[0])
        detail = json.loads(judgment.detail)
        assert score.value == judgment.outcome == pytest.approx(by_the_method[0], abs=1e-5)
        assert (score.unscored, score.correct, score.response_chars) == (None, None, len(response.text))
        assert list(detail["attributes"]) == list(ATTRIBUTES)
        np.testing.assert_allclose(list(detail["attributes"].values()), rewards, atol=1e-5, rtol=1e-5)
        np.testing.assert_allclose(detail["gate"], gating, atol=1e-5, rtol=1e-5)
    assert len({score.value for score in scores}) == 3


def test_scores_do_not_depend_on_the_rest_of_the_batch(folder: Path):
    groups = [
        a_group(*["hello " * (3 * i + k * k) + "!" for k in range(5)], instruction="x" * 40 * i) for i in range(4)
    ]
    alone = Scorer(load_armorm_reader, folder, JudgeEngineConfig(batch_tokens=64))
    together = Scorer(load_armorm_reader, folder, JudgeEngineConfig())
    assert together.packs
    apart = [
        judgment.outcome
        for group in groups
        for response in group.responses
        for judgment in next(judge_of(folder, alone).judge([Group("p", group.instruction, None, (response,))]))
    ]
    at_once = [judgment.outcome for judgments in judge_of(folder, together).judge(groups) for judgment in judgments]
    assert at_once == pytest.approx(apart, abs=1e-5)


def test_writing_and_reading_keeps_every_tensor_and_the_published_types(tmp_path: Path):
    model = tiny_armorm()
    save_armorm(model, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert stored.keys() == model.state_dict().keys()
    assert {tensor.dtype for name, tensor in stored.items() if name.startswith("model.")} == {torch.bfloat16}
    assert {tensor.dtype for name, tensor in stored.items() if not name.startswith("model.")} == {torch.float32}
    for dtype in ("float32", "bfloat16"):
        loaded = load_armorm(tmp_path, dtype)
        assert loaded.state_dict().keys() == stored.keys()
        assert all(torch.equal(tensor, stored[name].to(tensor.dtype)) for name, tensor in loaded.state_dict().items())
        assert {tensor.dtype for tensor in loaded.model.state_dict().values()} == {getattr(torch, dtype)}
        assert loaded.gating.layers[0].weight.dtype == loaded.reward_transform_matrix.dtype == torch.float32


def test_tensors_in_several_files_are_read_as_one_model(tmp_path: Path):
    one, several = tmp_path / "one", tmp_path / "several"
    save_armorm(tiny_armorm(), one)
    split(one, several)
    expected = load_armorm(one).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in load_armorm(several).state_dict().items())


def split(one: Path, several: Path) -> None:
    several.mkdir()
    shutil.copy(one / "config.json", several)
    tensors = load_file(one / "model.safetensors")
    names = sorted(tensors)
    places = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(places.values()):
        save_file({name: tensors[name] for name in names if places[name] == file}, several / file)
    (several / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"num_key_value_heads": 4, "num_hidden_layers": 3},
        {"head_dim": 16, "num_objectives": 5, "gating_hidden_dim": 7, "gating_n_hidden": 1},
        {
            "hidden_size": 4096,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "intermediate_size": 14336,
            "vocab_size": 128257,
            "gating_hidden_dim": 1024,
        },
    ],
    ids=["tiny", "no grouped heads", "wide heads", "published"],
)
def test_the_tensors_expected_of_a_folder_are_those_of_our_module(tmp_path: Path, sizes: dict[str, Any]):
    config = LlamaConfig(**SIZES | {"vocab_size": 300, "num_objectives": 19} | GATE | sizes)
    config.architectures = ["LlamaForRewardModelWithGating"]
    with torch.device("meta"):
        module = ArmoRM(config)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    header, offset = {}, 0
    for name, tensor in module.state_dict().items():
        end = offset + tensor.numel()
        header[name] = {"dtype": "U8", "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
    assert check_armorm_weights(tmp_path).keys() == module.state_dict().keys()


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def change_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a missing tensor": (
        lambda folder: change_tensors(folder, lambda tensors: tensors.pop("gating.layers.2.bias")),
        "lacking: gating.layers.2.bias",
    ),
    "an extra tensor": (
        lambda folder: change_tensors(folder, lambda tensors: tensors.update({"score.weight": torch.zeros(1)})),
        "not expected: score.weight",
    ),
    "another shape": (
        lambda folder: change_tensors(folder, lambda t: t.update({"regression_layer.weight": torch.zeros(18, 32)})),
        r"regression_layer.weight is \[18, 32\] \(expected \[19, 32\]\)",
    ),
    "another config": (
        lambda folder: change_json(folder / "config.json", num_hidden_layers=3),
        "lacking: model.layers.2.input_layernorm.weight, .* and 5 more",
    ),
    "no objectives": (
        lambda folder: change_json(folder / "config.json", num_objectives=None),
        "num_objectives None, expected a whole number",
    ),
    "no temperature": (
        lambda folder: change_json(folder / "config.json", gating_temperature=0),
        "gating_temperature 0, expected a number above 0",
    ),
    "another class": (
        lambda folder: change_json(folder / "config.json", architectures=["LlamaForSequenceClassification"]),
        "LlamaForSequenceClassification.*expected .*LlamaForRewardModelWithGating.*judge.kind = 'reward_model'",
    ),
    "a cut file": (lambda folder: cut(folder / "model.safetensors"), "bytes, expected .*: it is truncated or damaged"),
    "not safetensors": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"\x80\x04pickled"),
        "is not a safetensors file",
    ),
    "a file of several is not there": (
        lambda folder: [
            (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors"),
            (folder / "model.safetensors.index.json").write_text(
                json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "../other.safetensors"}})
            ),
        ],
        "other.safetensors is missing",
    ),
    "code in the config": (
        lambda folder: change_json(folder / "config.json", auto_map={"AutoModel": "modeling.ArmoRM"}),
        r"contains code \(auto_map in config.json\).*delete auto_map",
    ),
    "code next to it": (
        lambda folder: (folder / "modeling_custom.py").write_text("raise SystemExit"),
        r"contains code \(modeling_custom.py\).*delete",
    ),
    "pickled weights next to it": (
        lambda folder: (folder / "pytorch_model.bin").write_bytes(b"pickled"),
        r"pickles \(pytorch_model.bin\)",
    ),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer"),
    "no folder": (shutil.rmtree, "is not a folder"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_folder_that_is_not_an_armorm_is_refused_and_named(tmp_path: Path, folder: Path, case: str):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    change, pattern = REFUSED[case]
    change(copy)
    for ask in (check_armorm_folder, lambda copy: next(judge_of(copy, Overheard()).judge([a_group("Hi.")]))):
        with pytest.raises(InputError, match=f"{copy.name}.*{pattern}|{pattern}"):
            ask(copy)


def test_a_sound_folder_gives_its_context(folder: Path):
    assert check_armorm_folder(folder) == SIZES["max_position_embeddings"]


def like_the_published_tokenizer() -> PreTrainedTokenizerFast:
    """Filler tokens, except for those of a chat, which have the published ids."""
    vocabulary = {f"filler-{i}": i for i in range(128_000)}
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    wanted = {"assistant": 78191, "user": 882, "ĊĊ": 271} | {letter: 1000 + i for i, letter in enumerate(letters)}
    taken = set(wanted.values())
    vocabulary = {token: i for token, i in vocabulary.items() if i not in taken} | wanted
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = {0: "<|begin_of_text|>", 6: "<|start_header_id|>", 7: "<|end_header_id|>", 9: "<|eot_id|>"}
    tokenizer.add_special_tokens(
        [AddedToken(control.get(i, f"<|reserved-{i}|>"), special=True, normalized=False) for i in range(256)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>")
    fast.chat_template = LLAMA_TEMPLATE
    return fast


def test_with_the_published_ids_the_gate_reads_at_the_published_pattern(tmp_path: Path):
    like_the_published_tokenizer().save_pretrained(tmp_path)
    encoder = ChatEncoder(tmp_path, generation_prompt=False)
    assert encoder.ids(ANSWER_HEADER, as_text=False) == [128009, 128006, 78191, 128007, 271]
    chat = judge_of(tmp_path, Overheard()).chat_of("Hi", "Yo")
    head = [128000, 128006, 882, 128007, 271, *encoder.ids("Hi", as_text=True)]
    assert list(chat.token_ids) == [
        *head,
        *[128009, 128006, 78191, 128007, 271],
        *encoder.ids("Yo", as_text=True),
        128009,
    ]
    assert chat.positions == (len(head), len(chat.token_ids) - 1)


def test_the_gate_reads_at_the_last_header():
    header = [9, 6, 1, 7, 2]
    assert gate_index([0, *header, 5, *header, 9], header) == 7
    assert gate_index([0, *header], header) == 1
    with pytest.raises(InputError, match="does not contain ArmoRM's assistant header"):
        gate_index([0, *header[:-1], 3], header)
    with pytest.raises(InputError, match="assistant header"):
        gate_index([9, 6], header)


@pytest.mark.parametrize("text", [*HOSTILE, ANSWER_HEADER, f"a{ANSWER_HEADER}b{ANSWER_HEADER}"])
def test_control_tokens_in_a_response_or_an_instruction_change_no_structure(folder: Path, text: str):
    judge = judge_of(folder, Overheard())
    encoder = ChatEncoder(folder, generation_prompt=False)
    control = set(encoder.tokenizer.convert_tokens_to_ids(list(LLAMA_CONTROLS)))
    plain = judge.chat_of("Say hello.", "hello")
    for chat in (judge.chat_of("Say hello.", text), judge.chat_of(text, "hello")):
        assert [i for i in chat.token_ids if i in control] == [i for i in plain.token_ids if i in control]
        assert chat.token_ids.count(encoder.tokenizer.bos_token_id) == 1
    answered = judge.chat_of("Say hello.", text)
    assert answered.positions[0] == plain.positions[0]
    assert answered.token_ids[: plain.positions[0]] == plain.token_ids[: plain.positions[0]]


def test_the_gating_depends_on_the_prompt_and_not_on_the_response(folder: Path, scorer: Scorer):
    groups = [a_group("hello", f"No {ANSWER_HEADER} no", instruction=text) for text in ("Say hello.", "x" * 30)]
    gates = [
        [json.loads(judgment.detail)["gate"] for judgment in group] for group in judge_of(folder, scorer).judge(groups)
    ]
    assert gates[0][0] == pytest.approx(gates[0][1], abs=1e-5)
    assert gates[1][0] == pytest.approx(gates[1][1], abs=1e-5)
    assert max(abs(a - b) for a, b in zip(gates[0][0], gates[1][0], strict=True)) > 1e-3


def test_no_token_of_a_thought_reaches_the_judge(folder: Path):
    overheard = Overheard()
    canary = "~canary~"
    samples = [a_sample(index=i, thought=f"{canary} {i}", response=f"Yes {i}.") for i in range(3)]
    groups = groups_of([a_prompt()], samples, with_errors=False)
    list(judge_of(folder, overheard).judge(groups))
    tokenizer = ChatEncoder(folder).tokenizer
    read = [tokenizer.decode(chat.token_ids) for chat in overheard.chats]
    assert [f"Yes {i}." in text for i, text in enumerate(read)] == [True] * 3
    assert not any("~" in text or "canary" in text for text in read)
    assert not any(tokenizer.convert_tokens_to_ids("~") in chat.token_ids for chat in overheard.chats)


def test_a_chat_that_is_too_long_is_unscored_and_never_read(folder: Path):
    overheard = Overheard()
    judge = judge_of(folder, overheard, max_tokens=120)
    group = a_group("Short.", "long " * 200, "Short too.")
    (judgments,) = judge.judge([group])
    assert len(overheard.chats) == 2
    scores = judge.score(group, judgments)
    assert [score.unscored for score in scores] == [None, "too_long", None]
    assert [score.value for score in scores] == [0.0, None, 0.0]
    detail = json.loads(judgments[1].detail)
    assert (detail["limit"], detail["tokens"] > 1000) == (120, True)


def test_the_models_context_is_a_limit_too(tmp_path: Path):
    folder = armorm_folder(tmp_path, tiny_armorm(max_position_embeddings=128))
    group = a_group("long " * 100)
    (judgments,) = judge_of(folder, Overheard()).judge([group])
    assert json.loads(judgments[0].detail)["limit"] == 128


def test_a_score_that_is_not_a_number_is_unscored(tmp_path: Path):
    model = tiny_armorm()
    model.regression_layer.weight.data[3, 3] = float("nan")
    folder = armorm_folder(tmp_path, model)
    group = a_group("Yes.")
    judge = judge_of(folder, Scorer(load_armorm_reader, folder, ENGINE))
    (judgments,) = judge.judge([group])
    assert [(score.value, score.unscored) for score in judge.score(group, judgments)] == [(None, "not_finite")]
    json.loads(judgments[0].detail, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


@pytest.mark.parametrize(
    ("template", "pattern"),
    [
        (LLAMA_TEMPLATE.replace("bos_token + ", ""), "0 BOS, expected one"),
        (LLAMA_TEMPLATE.replace("bos_token + ", "bos_token + bos_token + "), "2 BOS, expected one"),
        (LLAMA_TEMPLATE.replace("end_header_id", "end_of_text"), "does not contain ArmoRM's assistant header"),
    ],
    ids=["no BOS", "two", "another header"],
)
def test_a_chat_template_unlike_llama_3s_is_refused(tmp_path: Path, folder: Path, template: str, pattern: str):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "chat_template.jinja").write_text(template)
    with pytest.raises(InputError, match=pattern):
        list(judge_of(copy, Overheard()).judge([a_group("Hi.")]))


def test_the_check_of_the_published_example_says_which_figures_differ(folder: Path):
    check = judge_check(folder)
    assert not check.passed
    lines = check.lines()
    assert len(lines) == 9
    assert sum("differs by more than" in line for line in lines) >= 5
    assert "code-complexity" in lines[0] and "0.19922" in lines[0]
    assert "helpsteer-helpfulness" in lines[3] and "2.78125" in lines[3]
    assert lines[8].endswith("differ")


def test_the_check_refuses_a_model_with_other_objectives(tmp_path: Path):
    with pytest.raises(InputError, match="has 3 objectives, expected the 19"):
        judge_check(armorm_folder(tmp_path, tiny_armorm(objectives=3)))
