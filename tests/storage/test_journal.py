"""Claims about the journal: what was written to it survives, and a truncated line does not."""

import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tpo.storage.journal import Journal, read_journal

texts = st.text(st.characters(exclude_categories=["Cs"]))
answers = st.dictionaries(texts, st.none() | st.dictionaries(texts, st.integers() | texts), max_size=5)


@given(answers, st.data())
def test_cut_anywhere_it_keeps_every_whole_line_and_continues(expected: dict[str, object], data: st.DataObject):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal-00000.jsonl"
        with Journal(path) as journal:
            for key, answer in expected.items():
                journal.write(key, answer)
        whole = path.read_bytes() if expected else b""
        cut = data.draw(st.integers(0, len(whole)))
        path.write_bytes(whole[:cut])
        kept = whole[:cut].count(b"\n")
        assert list(read_journal(path).answers.items()) == list(expected.items())[:kept]
        with Journal(path) as journal:
            assert list(journal.answers.items()) == list(expected.items())[:kept]
            journal.write("one more", {"x": 1})
        assert list(read_journal(path).answers.items())[-1] == ("one more", {"x": 1})
        assert len(read_journal(path).answers) == len(dict(list(expected.items())[:kept]) | {"one more": None})


def test_a_line_is_written_before_the_next_answer_is_requested(tmp_path: Path):
    path = tmp_path / "journal-00000.jsonl"
    journal = Journal(path)
    journal.write("a", 1)
    assert read_journal(path).answers == {"a": 1}


def test_without_an_answer_there_is_no_file(tmp_path: Path):
    with Journal(tmp_path / "journal-00000.jsonl") as journal:
        assert not journal.answers
    assert not list(tmp_path.iterdir())


def test_it_counts_its_answers(tmp_path: Path):
    counts: list[int] = []
    path = tmp_path / "journal-00000.jsonl"
    for key in ("a", "b"):
        with Journal(path, counts.append) as journal:
            journal.write(key, None)
    assert counts == [1, 2]
