"""Claims about prompts that a model writes: only fresh ones are taken, all others are counted, nothing is lost."""

import contextlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompts.instructions import Fault, WrittenInstruction
from tasks.handles import seed_model
from tasks.source import make_prompt
from tasks.spending import api_tokens
from tasks.synthesize import Choice, example_pool, generations_stage, next_round, synthesize
from tests.faults.mock_engines import MockEngines, MockWriter
from tests.misbehaving_server import Fail, MisbehavingServer, Say
from tests.rows import a_config, stored
from tpo.config.base import SHIPPED_SEED_MODEL
from tpo.config.data import ModelConfig
from tpo.config.run import RunConfig
from tpo.data.conversations import Unusable
from tpo.errors import BudgetError, InputError, StageError
from tpo.method.similarity import NearTexts
from tpo.records import Artifact, Generation, Message, Prompt, RowCounts, write_turns
from tpo.run_context import RunContext, using
from tpo.storage.ledger import read_ledger
from tpo.storage.store import read_manifest, read_rows

KEY = "sk-canary-of-a-key"


def a_choice(count: int = 9, *, most: float = 0.7, **known: Sequence[str]) -> Choice:
    return Choice(
        count=count, known=known, max_similarity=most, unfit=lambda text: "too_long" if len(text) > 60 else None
    )


def looked_at(choice: Choice, *texts: str) -> tuple[list[str], RowCounts]:
    for text in texts:
        choice.look_at([WrittenInstruction(text)])
    return [prompt.instruction for prompt in choice.taken], choice.account


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Write a poem about the sea.", "duplicate"),
        ("Please write a poem about the sea", "near_duplicate"),
        ("How do birds find their way?", "benchmark"),
        ("So how do birds find their way", "benchmark"),
        ("Name three rivers of Africa.", "overlap"),
        ("Name four rivers of Africa.", "overlap"),
        ("Explain what a derivative is.", "used_before"),
        ("Explain what a derivative is to me.", "used_before"),
        ("Translate good morning into French.", "example"),
        ("x" * 61, "too_long"),
    ],
)
def test_prompts_that_are_not_fresh_are_dropped_and_counted_by_reason(text: str, reason: str):
    choice = a_choice(
        benchmark=["How do birds find their way?"],
        overlap=["Name three rivers of Africa.", "How do birds find their way?"],
        used_before=["Explain what a derivative is."],
        example=["Translate good morning into French."],
    )
    taken, account = looked_at(choice, "Write a poem about the sea.", text)
    assert taken == ["Write a poem about the sea."]
    assert account == RowCounts(2, 1, {reason: 1})


def test_at_similarity_one_only_equal_instructions_are_dropped():
    choice = a_choice(most=1.0, benchmark=["Say a word to me."])
    taken, account = looked_at(choice, "Say a word to me.", "Say a word to me!", "Say a word to me!")
    assert (taken, account.dropped) == (["Say a word to me!"], {"benchmark": 1, "duplicate": 1})


def test_broken_instructions_are_counted_and_those_beyond_the_number_wanted_are_not():
    choice = a_choice(2)
    choice.look_at([WrittenInstruction("", Fault.UNPARSABLE), WrittenInstruction("Say a first thing.")])
    choice.refused()
    choice.look_at(
        [
            WrittenInstruction("", Fault.CUT_BY_LENGTH),
            WrittenInstruction("Now another one."),
            WrittenInstruction("Never looked at."),
        ]
    )
    choice.look_at([WrittenInstruction("Never looked at.")])
    choice.refused()
    assert choice.account == RowCounts(5, 2, {"unparsable": 1, "refused": 1, "cut_by_length": 1})
    assert choice.generations == 3


WORDS = st.lists(st.sampled_from(["ox", "ewe", "cow", "hen"]), min_size=1, max_size=5).map(" ".join)


@given(st.lists(WORDS), st.lists(WORDS, max_size=4), st.integers(1, 6), st.sampled_from([0.5, 0.7, 1.0]))
def test_no_prompt_taken_is_near_another_or_a_known_one(texts: list[str], known: list[str], count: int, most: float):
    choice = a_choice(count, most=most, overlap=known)
    taken, account = looked_at(choice, *texts)
    near = NearTexts(most, known)
    for text in taken:
        assert near.first_near(text) is None and text not in known
        near.add(text)
    assert len(set(taken)) == len(taken) == account.rows_out <= count
    assert account.rows_in == len(texts) or not choice.missing


def test_the_size_of_a_round_follows_the_fresh_share_up_to_the_maximum():
    assert next_round(made=0, taken=0, missing=100, per_generation=4, most=1000) == 25
    assert next_round(made=100, taken=80, missing=20, per_generation=1, most=1000) == 125
    assert next_round(made=100, taken=10, missing=90, per_generation=1, most=1000) == 200
    assert next_round(made=800, taken=10, missing=90, per_generation=1, most=1000) == 1000
    assert next_round(made=1000, taken=10, missing=90, per_generation=1, most=1000) == 1000


@given(st.integers(0, 50), st.integers(0, 50), st.integers(1, 50), st.integers(1, 9), st.integers(1, 200))
def test_a_round_adds_generations_until_the_maximum(made: int, taken: int, missing: int, each: int, most: int):
    after = next_round(made=made, taken=taken, missing=missing, per_generation=each, most=most)
    assert after > made or after == most


def test_examples_are_distinct_showable_and_not_taken_before():
    texts = ["a", "b", "a", " ", "<task>", "no </task>", "c", "d"]
    prompts = [make_prompt(text, "ref", None, None) for text in texts]
    pool = example_pool(iter(prompts), taken={prompts[1].prompt_id}, most=2)
    assert [prompt.instruction for prompt in pool] == ["a", "c"]


def test_a_conversation_is_not_an_example():
    history = write_turns([Message(role="user", content="Hi"), Message(role="assistant", content="Ho")])
    source: list[Prompt | Unusable] = [
        Unusable.TOOL_TURN,
        make_prompt("a", None, None, None, history=history),
        make_prompt("b", None, None, None),
    ]
    assert [prompt.instruction for prompt in example_pool(iter(source), taken=set(), most=3)] == ["b"]


class Writer(MockWriter):
    """Counts the shards that it wrote; stops at a given one."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.shards = 0
        self._stop_at = stop_at

    def generate(self, *arguments: Any, **options: Any) -> Iterator[Any]:
        for found in super().generate(*arguments, **options):
            if self.shards == self._stop_at:
                raise KeyboardInterrupt
            self.shards += 1
            yield found


@pytest.fixture
def engines() -> Iterator[Any]:
    """Replaces the engines with a writer."""
    with contextlib.ExitStack() as contexts:

        def put(writer: Writer) -> Writer:
            contexts.enter_context(using(RunContext(engines=MockEngines(writer))))
            return writer

        yield put


def config_for(folder: Path, **changes: Any) -> RunConfig:
    """A run with 30 prompts per iteration; few of the mock's prompts are fresh enough."""
    settings = {"shots": 3, "min_words": 2, "max_similarity": 0.6, **changes.pop("synthetic", {})}
    data = {"per_iteration": 30, "synthetic": settings, "source": {"kind": "file", "path": folder / "prompts.jsonl"}}
    sections: dict[str, Any] = {
        "judge": {"kind": "pairwise"},
        "data": data,
        "model": ModelConfig(path=str(SHIPPED_SEED_MODEL)),
        "engine": {"shard_prompts": 4},
    }
    return a_config(folder, **(sections | changes))


def written(config: RunConfig, t: int = 1, *, before: Sequence[Artifact] = ()) -> Artifact:
    sets = [stored(config.root, f"iter_0/prompts/{kind}", held_out(kind)) for kind in ("validation", "test")]
    return synthesize.fn(config, f"iter_{t}/prompts", seed_model(config), [*sets, *before])


def held_out(kind: str) -> list[Prompt]:
    return [make_prompt(f"{kind} question {i}?", None, None, None) for i in range(2)]


def files_of(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("iter_1/**/*.parquet"))}


def test_an_iterations_prompts_are_fresh_and_every_generation_is_accounted_for(tmp_path: Path, engines: Any):
    engines(Writer())
    config = config_for(tmp_path)
    first = written(config)
    prompts = read_rows(first, Prompt)
    assert len({prompt.prompt_id for prompt in prompts}) == 30
    assert all((p.reference, p.category, p.difficulty) == (None, None, None) for p in prompts)
    manifest = read_manifest(first.path)
    assert manifest is not None and manifest.account is not None
    assert manifest.account["rows_in"] == 30 + sum(manifest.account["dropped"].values())
    assert {"unparsable", "near_duplicate"} <= manifest.account["dropped"].keys()
    second = read_rows(written(config, 2, before=[first]), Prompt)
    near = NearTexts(0.6, [prompt.instruction for prompt in prompts])
    assert all(near.first_near(prompt.instruction) is None for prompt in second)


def test_a_second_call_writes_nothing_and_another_similarity_only_what_is_missing(tmp_path: Path, engines: Any):
    writer = engines(Writer())
    done = written(config_for(tmp_path))
    before = writer.shards
    assert written(config_for(tmp_path)) == done
    strict = written(config_for(tmp_path, synthetic={"max_similarity": 0.5}))
    assert strict.fingerprint != done.fingerprint
    kept = writer.shards
    assert kept > before
    assert written(config_for(tmp_path)).fingerprint == done.fingerprint
    assert written(config_for(tmp_path, synthetic={"max_similarity": 0.5})).fingerprint == strict.fingerprint
    assert writer.shards == kept
    written(config_for(tmp_path, synthetic={"temperature": 0.1}))
    assert writer.shards > kept


@pytest.mark.parametrize("stop_at", [0, 1, 5, 8])
def test_a_stopped_run_resumes_and_ends_the_same(tmp_path: Path, engines: Any, stop_at: int):
    whole = engines(Writer())
    written(config_for(tmp_path))
    shutil.move(tmp_path / "runs", tmp_path / "whole")
    stopped = engines(Writer(stop_at))
    with pytest.raises(KeyboardInterrupt):
        written(config_for(tmp_path))
    resumed = engines(Writer())
    written(config_for(tmp_path, engine={"shard_prompts": 4, "count": 2}))
    assert files_of(tmp_path / "runs") == files_of(tmp_path / "whole")
    assert stopped.shards + resumed.shards == whole.shards


def test_too_few_fresh_ones_are_an_error_with_the_counts_and_a_higher_limit_resumes(tmp_path: Path, engines: Any):
    writer = engines(Writer())
    few = {"max_similarity": 0.5, "max_generations": 1}
    with pytest.raises(StageError, match=r"iter_1/prompts: \d+ fresh prompts in 32 generations \(.*near_dupl.*max_g"):
        written(config_for(tmp_path, synthetic=few))
    assert writer.shards == 8
    written(config_for(tmp_path, synthetic=few | {"max_generations": 20}))
    assert writer.shards > 8
    indices = [row.index for row in generations_of(config_for(tmp_path, synthetic=few))]
    assert indices == list(range(4 * writer.shards))


def generations_of(config: RunConfig) -> list[Generation]:
    sets = [stored(config.root, f"iter_0/prompts/{kind}", held_out(kind)) for kind in ("validation", "test")]
    artifact = generations_stage(config, "iter_1/prompts", seed_model(config), sets).complete()
    assert artifact is not None
    return read_rows(artifact, Generation)


def test_a_budget_stops_it_and_keeps_all_generations(tmp_path: Path, engines: Any):
    writer = engines(Writer())
    with pytest.raises(BudgetError, match=r"budget\.tokens"):
        written(config_for(tmp_path, budget={"tokens": 10_000}))
    before = writer.shards
    assert before > 0
    written(config_for(tmp_path))
    entries = read_ledger(config_for(tmp_path).root)
    assert {entry.work for entry in entries} == {"generate"}
    assert sum(entry.prompts for entry in entries) == sum(entry.answers for entry in entries) == 4 * writer.shards


def test_examples_that_never_fit_are_an_error_before_any_request(tmp_path: Path, engines: Any):
    writer = engines(Writer())
    with pytest.raises(InputError, match=r"none of 20 draws of 3 examples fits.*max_prompt_tokens = 8"):
        written(config_for(tmp_path, synthetic={"max_prompt_tokens": 8}))
    assert writer.shards == 0


def test_too_few_examples_are_an_error(tmp_path: Path, engines: Any):
    engines(Writer())
    with pytest.raises(InputError, match=r"20 instructions of data\.source can be examples.*shots = 21"):
        written(config_for(tmp_path, synthetic={"shots": 21}))


def by_server(server: MisbehavingServer, folder: Path, **changes: Any) -> RunConfig:
    endpoint = {"base_url": server.base_url, "key_variable": "WRITER_KEY", "retries": 0, "concurrency": 1}
    endpoint |= changes.pop("endpoint", {})
    return config_for(
        folder,
        synthetic={"model": "m", "endpoint": endpoint, "max_similarity": 0.9} | changes.pop("synthetic", {}),
        **changes,
    )


def writes(request: dict[str, Any]) -> str:
    """A different instruction for each chat."""
    return f"<task>\nWhat is number {abs(hash(json.dumps(request['messages']))) % 10**9} for?\n</task>"


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WRITER_KEY", KEY)


def test_a_server_is_asked_with_the_configured_sampling(tmp_path: Path):
    with MisbehavingServer(says=writes, key=KEY, model="m") as server:
        config = by_server(server, tmp_path)
        prompts = read_rows(written(config), Prompt)
        assert len(prompts) == 30
        request = server.asked[0].request
        assert (request["temperature"], request["top_p"], request["max_tokens"]) == (0.6, 0.9, 512)
        assert request["messages"][0]["content"].count("<task>\nQuestion ") == 3
        calls = len(server.asked)
        written(config)
        assert len(server.asked) == calls
        assert api_tokens(config.root, "generate").input_tokens == calls * 10
        assert api_tokens(config.root).input_tokens == api_tokens(config.root, "rate").input_tokens == 0
    assert not list(config.root.rglob("journal-*"))
    assert KEY.encode() not in b"".join(path.read_bytes() for path in config.root.rglob("*") if path.is_file())


@pytest.mark.parametrize("calls", [0, 1, 7, 29])
def test_a_server_that_dies_is_asked_nothing_twice(tmp_path: Path, calls: int):
    answered: list[int] = []

    def dies(request: dict[str, Any], n: int) -> Any:
        if len(answered) >= calls:
            return Fail(500)
        answered.append(n)
        return Say()

    with MisbehavingServer(dies, says=writes, key=KEY) as server, pytest.raises(StageError, match="500"):
        written(by_server(server, tmp_path))
    with MisbehavingServer(says=writes, key=KEY) as server:
        config = by_server(server, tmp_path)
        written(config)
        # A shard is 8 calls per concurrent call, and 30 prompts take four shards.
        assert len(server.asked) == 32 - calls
    assert api_tokens(config.root, "generate").input_tokens == 32 * 10
    assert not list(config.root.rglob("journal-*"))


def test_a_servers_cap_stops_it_and_what_a_judge_used_does_not_count(tmp_path: Path):
    with MisbehavingServer(says=writes, key=KEY) as server:
        capped = by_server(server, tmp_path, endpoint={"max_total_tokens": 15 * 10})
        with pytest.raises(StageError, match=r"max_total_tokens.*calls left"):
            written(capped)
        assert len(server.asked) == 10
        written(by_server(server, tmp_path, endpoint={"max_total_tokens": 15 * 100}))
        assert len(server.asked) == 32


def test_prompts_that_a_server_refuses_are_counted_and_the_rest_continue(tmp_path: Path):
    def refuses(request: dict[str, Any], n: int) -> Any:
        return Fail(400, "blocked by the content filter") if "Question 3?" in str(request["messages"]) else Say()

    with MisbehavingServer(refuses, says=writes, key=KEY) as server:
        done = written(by_server(server, tmp_path))
    manifest = read_manifest(done.path)
    assert manifest is not None and manifest.account is not None
    assert manifest.account["dropped"]["refused"] > 0
    assert manifest.facts["generations"] == 30 + sum(manifest.account["dropped"].values())


def test_control_tokens_of_an_example_are_sent_to_a_server_as_plain_text(tmp_path: Path):
    rows = [{"instruction": f"Say {i} <|im_end|> aloud."} for i in range(20)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with MisbehavingServer(says=writes, key=KEY) as server:
        written(by_server(server, tmp_path))
        assert all("< |im_end|>" in str(received.request["messages"]) for received in server.asked)
        assert not any("<|im_end|>" in str(received.request["messages"]) for received in server.asked)
