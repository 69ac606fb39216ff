"""Claims about untrusted files: they are rejected by name or harmless, and nothing in them is ever executed."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flows.preflight import preflight
from judges.reward_model import check_reward_folder
from tests.hostile_files import DATA_FILES, MODEL_FOLDERS, pickled, sound_model
from tests.rows import a_config
from tests.sampling import sampled
from tpo.config.data import DataConfig, FileSource, ModelConfig
from tpo.data import row_files
from tpo.data.prompt_files import PromptRow, file_of, read_prompt_rows
from tpo.errors import InputError
from tpo.models.armorm_format import check_armorm_folder
from tpo.models.folder import check_model_folder

ROOT = Path(__file__).parents[2]


def as_seed(folder: Path) -> None:
    preflight(a_config(folder.parent, model=ModelConfig(path=str(folder))))


def as_pairwise_judge(folder: Path) -> None:
    (run := folder.parent / "run").mkdir(exist_ok=True)
    preflight(a_config(run, judge={"kind": "pairwise", "model": str(folder)}))


WAYS_IN: Mapping[str, Callable[[Path], object]] = {
    "seed model": as_seed,
    "pairwise judge": as_pairwise_judge,
    "reward model": check_reward_folder,
    "armorm": check_armorm_folder,
}
"""Every check that precedes a loader."""


@pytest.mark.timeout(60)
@pytest.mark.parametrize("case", [name for name, hostile in MODEL_FOLDERS.items() if hostile.message])
def test_a_hostile_model_folder_is_refused_by_name_by_every_check(tmp_path: Path, case: str):
    folder, canary = sound_model(tmp_path / "hostile"), tmp_path / "canary"
    MODEL_FOLDERS[case].make(folder, canary)
    for check in WAYS_IN.values():
        with pytest.raises(InputError, match=MODEL_FOLDERS[case].message):
            check(folder)
    assert not canary.exists()


@pytest.mark.parametrize("case", [name for name, hostile in MODEL_FOLDERS.items() if not hostile.message])
def test_a_folder_that_can_do_no_harm_is_accepted(tmp_path: Path, case: str):
    folder = sound_model(tmp_path / "hostile")
    MODEL_FOLDERS[case].make(folder, tmp_path / "canary")
    assert check_model_folder(folder) == 512


def test_every_test_named_in_a_promise_exists():
    promises = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", promises)
    assert len(named) >= 7
    assert [name for name in named if f"def {name}(" not in tests] == []
    assert [path for path in re.findall(r"`((?:tests|tpo)/[\w/.]+)`", promises) if not (ROOT / path).is_file()] == []


def test_the_promised_limits_are_those_of_the_code():
    promises = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    assert (row_files.MEMORY_BYTES, row_files.MAX_FILE_BYTES, row_files.SECONDS) == (4 << 30, 1 << 30, 300)
    assert (row_files.MAX_TEXT_CHARS, row_files.MAX_LINE_CHARS) == (2**28, 2**24)
    assert "4 GiB" in promises and f"{row_files.MAX_ROWS:,} rows, 2²⁸ characters" in " ".join(promises.split())


PUBLISHED = ("what published folders hold besides the model", "a snapshot in the hub's cache")
LOADED = sampled(
    "hostile folders", [name for name, hostile in MODEL_FOLDERS.items() if hostile.loads], 4, always=PUBLISHED
)


@dataclass(frozen=True)
class Loaded:
    """Results of the loaders without the check."""

    places: Mapping[str, Path]
    """Path of each case."""
    came: Mapping[str, Mapping[str, Any]]
    """The process's report on each case."""
    control: Path
    """The canary of a pickle that is loaded."""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """Loads all folders in one process, since importing the loaders takes seconds."""
    place = tmp_path_factory.mktemp("loaded")
    places = {}
    for i, case in enumerate(LOADED):
        folder = sound_model(place / str(i) / "model")
        MODEL_FOLDERS[case].make(folder, folder.parent / "canary")
        places[case] = folder
    (place / "control.bin").write_bytes(pickled(place / "control"))
    command = [
        sys.executable,
        "-m",
        "tests.load_hostile_folders",
        str(place / "control.bin"),
        *map(str, places.values()),
    ]
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "RUST_BACKTRACE": "0"}
    # transformers asks whether to run code: every answer piped in is yes.
    done = subprocess.run(
        command, cwd=ROOT, env=variables, input="y\n" * 1000, capture_output=True, text=True, timeout=240, check=True
    )
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [result["folder"] for result in results] == list(map(str, places.values()))
    return Loaded(places, dict(zip(places, results, strict=True)), place / "control")


@pytest.mark.parametrize("case", LOADED)
def test_the_loaders_execute_nothing_of_a_hostile_folder_past_the_check(loaded: Loaded, case: str):
    assert not (loaded.places[case].parent / "canary").exists()
    assert "TimeoutError" not in loaded.came[case]["came"].values()


def test_a_canary_appears_where_a_pickle_is_loaded(loaded: Loaded):
    assert loaded.control.exists()


@pytest.mark.parametrize("case", PUBLISHED)
def test_a_published_folder_is_loaded_without_opening_its_sub_folders(loaded: Loaded, case: str):
    outcomes, folder = loaded.came[case]["came"], loaded.places[case]
    assert (outcomes["chat"], outcomes["trainer"], outcomes["sampler"]) == ("loaded", "loaded", "loaded")
    opened = [Path(path).relative_to(folder).as_posix() for path in loaded.came[case]["opened"]]
    assert "config.json" in opened
    assert [path for path in opened if "/" in path] == []


def read(path: Path, columns: tuple[str, ...]) -> list[PromptRow]:
    """The rows that a run reads from this file, after `preflight` has passed it."""
    others = path.parent / "others.jsonl"
    rows = ({"instruction": f"{i}", **dict.fromkeys(columns, 1)} for i in range(2))
    others.write_text("\n".join(map(json.dumps, rows)))
    places = {"path": path, "validation_path": others, "test_path": others}
    source = FileSource.model_validate({**places, **{f"{column}_column": column for column in columns}})
    preflight(a_config(path.parent, data=DataConfig(source=source, per_iteration=1, validation=1, test=1)))
    return read_prompt_rows(source, path)


GIANTS = (
    *("gigabytes in an archive", "one text, fifty thousand times", "one long text, many times"),
    *("zeros that are compressed", "five million rows", "a dataset of compressed zeros"),
)
"""Cases that take seconds to make and to refuse."""


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "case", sampled("hostile data files", [*DATA_FILES], 2, always=[name for name in DATA_FILES if name not in GIANTS])
)
def test_a_hostile_file_of_prompts_is_refused_or_read_correctly(tmp_path: Path, case: str):
    hostile, canary = DATA_FILES[case], tmp_path / "canary"
    path = tmp_path / hostile.name
    hostile.make(path, canary)
    if hostile.message is None:
        assert read(path, hostile.columns)[0].instruction
    else:
        with pytest.raises(InputError, match=hostile.message):
            read(path, hostile.columns)
    assert not canary.exists()


@pytest.mark.parametrize("path", ["a.csv", "{iteration.__class__}.csv", "{0}{{iteration}}.csv", "../{iteration}/a.csv"])
def test_a_path_with_an_iteration_is_filled_in_and_otherwise_not_evaluated(path: str):
    assert str(file_of(FileSource(path=Path(path)), "", 3)) == path.replace("{iteration}", "3")
