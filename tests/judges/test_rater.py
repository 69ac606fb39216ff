"""Claims about the rater: it asks once, keeps what was said, and stops if nothing can be read."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from judges.rater import Rater
from tpo.config.fine_grained import FineGrainedConfig
from tpo.engines.inference.chat_client import RefusedChat
from tpo.engines.inference.reply import Reply, TokenCount
from tpo.errors import StageError
from tpo.records import Prompt, Rating
from tpo.storage.journal import Journal

CONFIG = FineGrainedConfig(model="m")


class Scripted:
    """An asker that answers by a rule, the last question first, and can be made to fail."""

    def __init__(self, says: Callable[[str], str | RefusedChat], breaks_after: int | None = None) -> None:
        self.asked: list[str] = []
        self._says, self._breaks_after = says, breaks_after

    def ask(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Reply | RefusedChat]]:
        for i in reversed(range(len(prompts))):
            if len(self.asked) == self._breaks_after:
                raise ConnectionError("the server is gone")
            self.asked.append(prompts[i].prompt_id)
            said = self._says(prompts[i].instruction)
            yield i, Reply(said, True, 10, 2) if isinstance(said, str) else said


def some(count: int) -> list[Prompt]:
    return [Prompt(f"p{i}", f"Do {i}.") for i in range(count)]


def numbered(instruction: str) -> str:
    return f"[[Category: Coding]] [[Complexity: {1 + len(instruction) % 5}]]"


def test_ratings_are_in_the_order_of_the_prompts_and_keep_the_reply():
    says: dict[str, str | RefusedChat] = {"Do 0.": numbered("x"), "Do 1.": "Hm."}
    says |= {"Do 2.": RefusedChat("too_long"), "Do 3.": RefusedChat("no, 77")}
    spent: list[TokenCount] = []
    found = Rater(CONFIG, Scripted(lambda asked: says[asked])).rate(some(4), spend=spent.append)
    shown = [(r.prompt_id, r.category, r.no_category, r.complexity, r.no_complexity) for r in found]
    assert shown == [
        ("p0", "Coding", None, 2, None),
        ("p1", None, "no_label", None, "no_label"),
        ("p2", None, "too_long", None, "too_long"),
        ("p3", None, "refused", None, "refused"),
    ]
    assert json.loads(found[1].reply)["text"] == "Hm." and json.loads(found[3].reply) == {"reason": "no, 77"}
    assert spent == [TokenCount(10, 2)] * 2


@pytest.mark.parametrize("replies", [0, 1, 4])
def test_what_the_journal_holds_is_not_asked_again(tmp_path: Path, replies: int):
    path, prompts = tmp_path / "journal.jsonl", some(5)
    broken = Scripted(numbered, breaks_after=replies)
    with Journal(path) as journal, pytest.raises(ConnectionError):
        Rater(CONFIG, broken).rate(prompts, journal)
    whole = Scripted(numbered)
    with Journal(path) as journal:
        found = Rater(CONFIG, whole).rate(prompts, journal)
    assert len(whole.asked) == 5 - replies and not set(whole.asked) & set(broken.asked)
    assert found == Rater(CONFIG, Scripted(numbered)).rate(prompts)


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        ("It is Coding.", r"32 times the reply had no label.*follows the rating prompt"),
        ("", r"was empty or reasoning alone.*raise evaluation\.fine_grained\.max_new_tokens"),
        ("[[Category: Poems]]", r"named a category that isn't in evaluation\.fine_grained\.categories"),
        (RefusedChat("blocked by filter 4"), r"was refused by the server \(blocked by filter N\)"),
    ],
)
def test_a_rater_that_cannot_be_read_is_stopped_and_its_replies_forgotten(
    tmp_path: Path, said: str | RefusedChat, cause: str
):
    asker = Scripted(lambda _: said)
    with Journal(tmp_path / "journal.jsonl") as journal:
        with pytest.raises(StageError, match=cause):
            Rater(CONFIG, asker).rate(some(100), journal)
        assert journal.answers == {}
    assert len(asker.asked) == 32


def test_instructions_that_are_too_long_do_not_count_against_a_rater():
    found = Rater(CONFIG, Scripted(lambda _: RefusedChat("too_long"))).rate(some(40))
    assert {rating.no_category for rating in found} == {"too_long"}


def test_a_rating_that_is_half_readable_is_kept():
    (found,) = Rater(CONFIG, Scripted(lambda _: "[[Category: Poems]] [[Complexity: 5]]")).rate(some(1))
    assert found == Rating("p0", None, "not_listed", 5, None, found.reply)
