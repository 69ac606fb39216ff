"""Claims about what the browser says of each prompt: it is what the stages decided, with the reason."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from flows.browser.rounds import named
from flows.browser.site import Site, decoded, encoded
from tests.rows import a_demonstration, a_prompt, a_sample, a_score, stored
from tests.stored_run import begin_run, samples_stage, write_pairs, write_prompts, write_round
from tpo.config.judges import PairConfig, PairwiseJudge
from tpo.config.recipes import SelfTrain, ThinkPo
from tpo.config.run import RunConfig
from tpo.config.training import TrainConfig
from tpo.records import Judgment, Message, Pair, Prompt, Sample, Score, write_turns
from tpo.storage.store import Stage

GROUPS: dict[str, list[Sample]] = {
    "pair": [a_sample("pair", 0), a_sample("pair", 1, response="No, it isn't.")],
    "close": [a_sample("close", 0), a_sample("close", 1, response="Yes!")],
    "single": [a_sample("single", 0), a_sample("single", 1, parse_error="empty_response")],
    "broken": [a_sample("broken", i, parse_error="cut_by_length") for i in range(2)],
    "mute": [a_sample("mute", i) for i in range(2)],
    "long": [a_sample("long", 0), a_sample("long", 1, response="No. " * 600)],
}
VALUES = {("pair", 0): 1.0, ("pair", 1): 0.0, ("close", 0): 1.0, ("close", 1): 1.0, ("single", 0): 1.0,
          ("long", 0): 1.0, ("long", 1): 0.0}  # fmt: skip


def score(sample: Sample) -> Score:
    value = VALUES.get((sample.prompt_id, sample.index))
    return a_score(sample.prompt_id, sample.index, value, unscored=None if value is not None else "no_reference")


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    made = RunConfig(
        name="seen", folder=tmp_path, pair=PairConfig(max_error_pair_ratio=0), train=TrainConfig(max_tokens=1100)
    )
    begin_run(made)
    return made


def written(config: RunConfig, groups: dict[str, list[Sample]] = GROUPS) -> list[Pair]:
    prompts = write_prompts(config.root, "iter_1/prompts", [a_prompt(name) for name in groups])
    return write_pairs(config, "iter_1", write_round(config.root, "iter_1", prompts, [*groups.values()], score))


def table(config: RunConfig, name: str = "iter_1") -> dict[str, Any]:
    (found,) = [each for each in Site(config.root).rounds() if each.round.name == name]
    made: dict[str, Any] = decoded(found.files[found.entry["table"]]())
    return made


def test_every_prompt_has_its_pair_or_the_reason_for_none(config: RunConfig):
    (pair,) = written(config)
    columns = table(config)
    assert dict(zip(columns["prompts"]["id"], columns["prompts"]["why"], strict=True)) == {
        "pair": None,
        "close": "small_margin",
        "single": "single_candidate",
        "broken": "all_malformed",
        "mute": "unscored",
        "long": "too_long",
    }
    assert columns["pairs"] == [[0, pair.chosen_index, pair.rejected_index, "regular", pytest.approx(pair.margin)]]


def test_the_reasons_add_up_to_what_the_stage_has_counted(config: RunConfig):
    written(config)
    found = next(each for each in Site(config.root).rounds() if each.round.name == "iter_1").round
    assert found.scores is not None
    stage = Stage(config.root, "iter_1/pairs", Pair, inputs={}, config={}).manifest()
    assert stage is not None and stage.account is not None
    assert Counter(filter(None, table(config)["prompts"]["why"])) == stage.account["dropped"]


def test_a_round_that_is_being_sampled_has_no_scores_and_no_outcome(config: RunConfig):
    prompts = write_prompts(config.root, "iter_1/prompts", [a_prompt("pair")])
    stage = samples_stage(config.root, "iter_1", prompts)
    stage.write_shard(0, GROUPS["pair"])
    (found,) = Site(config.root).rounds()
    columns = decoded(found.files[found.entry["table"]]())
    assert found.entry["state"] == "sampling" and columns["pairs"] is None and "score" not in columns["samples"]


def test_a_new_shard_changes_the_table_and_leaves_the_texts_as_they_were(config: RunConfig):
    prompts = write_prompts(config.root, "iter_1/prompts", [a_prompt("pair"), a_prompt("close")])
    stage = samples_stage(config.root, "iter_1", prompts)
    stage.write_shard(0, GROUPS["pair"])
    site = Site(config.root)
    before = decoded(site.now())["rounds"][0]
    stage.write_shard(1, GROUPS["close"])
    after = decoded(site.now())["rounds"][0]
    assert after["table"] != before["table"] and after["samples"][:1] == before["samples"]
    assert decoded(site.file(after["table"]) or b"")["prompts"]["id"] == ["pair", "close"]


def test_answers_are_compared_with_those_without_thoughts(config: RunConfig):
    prompts = write_prompts(config.root, "iter_0/prompts/test", [a_prompt(name) for name in "abc"])

    def judged(right: str) -> Any:
        return lambda s: Score(s.prompt_id, s.index, float(s.prompt_id in right), None, s.prompt_id in right, 4)

    groups = [[a_sample(name)] for name in "abc"]
    write_round(config.root, "iter_0/direct", prompts, groups, judged("ab"))
    write_round(config.root, "iter_1/test", prompts, groups, judged("bc"))
    assert table(config, "iter_1/test")["samples"]["change"] == [-1, 0, 1]
    assert "change" not in table(config, "iter_0/direct")["samples"]


def test_contradicting_orders_of_a_comparing_judge_are_counted(tmp_path: Path):
    config = RunConfig(name="seen", folder=tmp_path, judge=PairwiseJudge(model="judge"))
    begin_run(config)
    prompts = write_prompts(config.root, "iter_1/prompts", [a_prompt("a"), a_prompt("b")])
    groups = [[a_sample(name, i) for i in range(2)] for name in "ab"]
    judgments = [Judgment("a", 0, 1, 1.0, '{"text": "[[A]]"}'), Judgment("a", 1, 0, 1.0, "{}"),
            Judgment("b", 0, 1, 1.0, "{}"), Judgment("b", 1, 0, -1.0, "{}")]  # fmt: skip
    write_round(config.root, "iter_1", prompts, groups, lambda s: a_score(s.prompt_id, s.index), judgments)
    assert table(config)["prompts"]["contradicted"] == [1, 0]
    (found,) = Site(config.root).rounds()
    texts = decoded(found.files[f"iter_1/judgments-{found.entry['judgments'][0]}"]())
    assert texts["a"][0] == [0, 1, 1.0, {"text": "[[A]]"}]


def test_pairs_of_self_training_are_found_by_their_tokens(tmp_path: Path):
    config = RunConfig(name="seen", folder=tmp_path, recipe=SelfTrain())
    begin_run(config)
    prompts = write_prompts(config.root, "base/prompts/train", [a_prompt("q"), a_prompt("r")])
    right, wrong, other = a_sample("q", 0), a_sample("q", 1, response="No."), a_sample("r", 0)

    def judged(s: Sample) -> Score:
        return Score(s.prompt_id, s.index, 1.0, None, s is not wrong, 4)

    answers = write_round(config.root, "iter_2/dpo", prompts, [[right, wrong], [other]], judged)
    given = a_demonstration("q", "Yes.")
    pairs = [
        Pair("q", "regular", [1, 2], given.output_token_ids, wrong.output_token_ids, -1, 1, None, 0.0, None),
        Pair("q", "regular", [1, 2], right.output_token_ids, [9], 0, 0, 1.0, 0.0, None),
    ]
    inputs = {"samples 1": answers.samples, "samples 2": answers.samples}
    stage = Stage(config.root, "iter_2/dpo/pairs", Pair, inputs=inputs, config={})
    stage.begin()
    stage.write_shard(0, pairs)
    stage.commit(1)
    columns = table(config, "iter_2/dpo")
    assert [pair[:3] for pair in columns["pairs"]] == [[0, None, 1], [0, 0, None]]
    assert columns["prompts"]["why"] == [None, "no_wrong_output"]


def test_a_conversation_is_shown_with_its_turns(config: RunConfig):
    turns: list[Message] = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hi."}]
    prompts = write_prompts(config.root, "iter_1/prompts", [Prompt("p", "And now?", history=write_turns(turns))])
    write_round(config.root, "iter_1", prompts, [[a_sample("p")]], lambda s: a_score("p"))
    (found,) = Site(config.root).rounds()
    texts = decoded(found.files[f"iter_1/samples-{found.entry['samples'][0]}"]())
    assert texts["prompts"]["p"]["earlier"] == turns and table(config)["prompts"]["turns"] == [2]


def test_no_text_is_code_in_a_data_file():
    hostile = "\";alert(1)//</script>\ud800\u2028\0\u202e'"
    data = encoded("a", {"text": hostile})
    assert data.isascii() and b"alert" not in data and data.count(b'"') == 4
    assert decoded(data) == {"text": hostile}
    assert json.loads(data.split(b"(")[1].split(b",")[0]) == "a"


@pytest.mark.parametrize(
    ("folder", "label"),
    [
        ("iter_3", "M_2, for training M_3"),
        ("iter_0/direct", "M_0 without thoughts"),
        ("iter_2/validation/epoch_1", "M_2 after epoch 1"),
        ("iter_2/round_3", "round 3, for training M_2"),
        ("iter_1/dpo", "SFT_0, for training DPO_1"),
        ("dpo/long", "long outputs"),
        ("elsewhere", "elsewhere"),
    ],
)
def test_a_round_is_named_by_the_model_that_wrote_it(folder: str, label: str):
    assert named(folder)[0] == label


def test_thinkpos_outputs_are_the_sides_of_its_pairs(tmp_path: Path):
    config = RunConfig(name="seen", folder=tmp_path, recipe=ThinkPo())
    begin_run(config)
    prompts = write_prompts(config.root, "sft/prompts", [a_prompt("a"), a_prompt("b")])
    for side_ in ("long", "short"):
        groups = [[a_sample("a")], [a_sample("b")]]
        write_round(config.root, f"dpo/{side_}", prompts, groups, lambda s: a_score(s.prompt_id))
    stored(config.root, "dpo/pairs", [Pair("a", "regular", [1], [2, 3], [2], 0, 0, None, None, None)])  # type: ignore[list-item]
    assert table(config, "dpo/long")["pairs"] == [[0, 0, None, "regular", None]]
    assert table(config, "dpo/short")["pairs"] == [[0, None, 0, "regular", None]]
    assert table(config, "dpo/long")["prompts"]["why"] == [None, "not_paired"]
