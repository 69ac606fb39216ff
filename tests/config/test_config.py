"""Claims about profiles and overrides, and about what they may import."""

import contextlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from flows.recipes import resolve_config
from tests.rows import a_config
from tpo.config.base import Endpoint
from tpo.config.data import FileSource, InstructionSource
from tpo.config.load import load_config
from tpo.config.recipes import ThinkPo
from tpo.config.renamed import RENAMED
from tpo.config.run import RunConfig
from tpo.config.training import SftConfig
from tpo.engines.inference.sampler import SEED_STRIDE
from tpo.errors import InputError

ROOT = Path(__file__).parents[2]
PROFILES = sorted((ROOT / "deploy" / "profiles").glob("*.toml"))
WRITTEN = "[judge]\nkind = 'armorm'\n[data.synthetic]\n"
THINKPO = "[recipe]\nkind = 'thinkpo'\n"
SELF_TRAIN = "[recipe]\nkind = 'self_train'\n"
HEAVY = ("datasets", "openai", "pandas", "prefect", "pyarrow", "ray", "torch", "transformers", "trl", "vllm")


def a_profile(folder: Path, text: str = "") -> Path:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(folder: Path, *overrides: str, text: str = "") -> str:
    with pytest.raises(InputError) as refused:
        load_config(a_profile(folder, text), overrides)
    return str(refused.value)


def test_there_are_profiles():
    assert PROFILES


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_every_shipped_profile_parses_and_is_named_after_its_file(path: Path):
    assert load_config(path).name == path.stem


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_a_resolved_profile_reads_back_from_json(path: Path):
    config = load_config(path, ["pair.rho=0.25"])
    assert RunConfig.model_validate_json(config.model_dump_json()) == config


def test_a_run_on_files_reads_back_from_json(tmp_path: Path):
    config = a_config(tmp_path)
    assert isinstance(config.data.source, FileSource)
    assert RunConfig.model_validate_json(config.model_dump_json()) == config


def test_an_empty_profile_is_a_run_of_defaults(tmp_path: Path):
    assert load_config(a_profile(tmp_path)) == RunConfig()


@pytest.mark.parametrize(
    ("override", "section", "field", "value"),
    [
        ("sample.k=4", "sample", "k", 4),
        ("sample.top_p=1", "sample", "top_p", 1.0),
        ("pair.rho=auto", "pair", "rho", "auto"),
        ('pair.rho="auto"', "pair", "rho", "auto"),
        ("pair.rho=0.1", "pair", "rho", 0.1),
        ("train.gradient_checkpointing=true", "train", "gradient_checkpointing", True),
        ("model.path=/a b/c=d", "model", "path", "/a b/c=d"),
        ("cluster.address=ray://host:10001", "cluster", "address", "ray://host:10001"),
        (r"judge.answer_pattern=#### (\S+)", "judge", "answer_pattern", r"#### (\S+)"),
    ],
)
def test_an_override_is_toml_or_else_text(tmp_path: Path, override: str, section: str, field: str, value: object):
    assert getattr(getattr(load_config(a_profile(tmp_path), [override]), section), field) == value


OLD_KEYS = [
    ("[sample]\ntries = 3", "sample.max_attempts=3", "sample.tries is deprecated: write sample.max_attempts"),
    ("[sample]\nevaluation_tries = 3", "sample.evaluation_max_attempts=3", "write sample.evaluation_max_attempts"),
    ("[train]\nschedule = 'linear'", "train.lr_scheduler=linear", "write train.lr_scheduler"),
    ("[train]\nfinal_share = 0.2", "train.min_lr_ratio=0.2", "write train.min_lr_ratio"),
    ("[train]\nwarmup_share = 0.2", "train.warmup_ratio=0.2", "write train.warmup_ratio"),
    ("[pair]\nerror_share = 0.2", "pair.max_error_pair_ratio=0.2", "write pair.max_error_pair_ratio"),
    ("[engine]\nmemory_gib = 3", "engine.kv_cache_gib=3", "write engine.kv_cache_gib"),
    ("[engine]\nmax_sequences = 3", "engine.max_num_seqs=3", "write engine.max_num_seqs"),
    ("[judge_engine]\nmemory_gib = 3", "judge_engine.kv_cache_gib=3", "write judge_engine.kv_cache_gib"),
    ("[judge_engine]\nmax_sequences = 3", "judge_engine.max_num_seqs=3", "write judge_engine.max_num_seqs"),
    ("[storage]\ntries = 3", "storage.max_attempts=3", "write storage.max_attempts"),
    (f"{WRITTEN}most_generations = 3", "data.synthetic.max_generations=3", "write data.synthetic.max_generations"),
    (f"{THINKPO}most_pairs = 3", "recipe.max_pairs=3", "write recipe.max_pairs"),
    (f"{THINKPO}differing_share = 0.3", "recipe.mismatched_answer_ratio=0.3", "write recipe.mismatched_answer_ratio"),
    (f"{SELF_TRAIN}similarity = 0.5", "recipe.dedup_threshold=0.5", "write recipe.dedup_threshold"),
    (f"{SELF_TRAIN}[recipe.sft]\ntoo_long = 'drop'", "recipe.sft.overlong=drop", "write recipe.sft.overlong"),
    (
        f"{SELF_TRAIN}[recipe.sft]\ntoo_long = 'cut'",
        "recipe.sft.overlong=truncate",
        'recipe.sft.too_long is deprecated: write recipe.sft.overlong = "truncate"',
    ),
    (f"{SELF_TRAIN}[recipe.sft]\nschedule = 'linear'", "recipe.sft.lr_scheduler=linear", "recipe.sft.lr_scheduler"),
    (f"{SELF_TRAIN}[recipe.sft]\nwarmup_share = 0.2", "recipe.sft.warmup_ratio=0.2", "write recipe.sft.warmup_ratio"),
    (
        f"{THINKPO}[recipe.source]\nkind = 'models'\nlong_sample = {{ evaluation_tries = 3 }}",
        "recipe.source.long_sample.evaluation_max_attempts=3",
        "write recipe.source.long_sample.evaluation_max_attempts",
    ),
    (
        f"{THINKPO}[recipe.source]\nkind = 'models'\nshort_sample = {{ tries = 3 }}",
        "recipe.source.short_sample.max_attempts=3",
        "write recipe.source.short_sample.max_attempts",
    ),
]
"""A profile with an old key, the override that means the same today, and the note (sections: `test_runs_before.py`)."""


@pytest.mark.parametrize(("profile", "today", "end"), OLD_KEYS)
def test_an_old_key_is_read_as_todays_with_one_note_that_names_it(tmp_path: Path, profile: str, today: str, end: str):
    notes: list[str] = []
    config = load_config(a_profile(tmp_path, profile), note=notes.append)
    head, _, _ = profile.rpartition("\n")
    assert config == load_config(a_profile(tmp_path, head), [today], note=notes.append)
    assert len(notes) == 1 and notes[0].endswith(end) and notes[0].startswith(str(tmp_path / "mine.toml"))


def test_every_old_key_has_a_line_in_the_table():
    listed = {
        (profile.split("=")[-2].split()[-1], today.partition("=")[0].split(".")[-1]) for profile, today, _ in OLD_KEYS
    }
    assert listed == {(key.old, key.new) for key in RENAMED}


@pytest.mark.parametrize(
    ("profile", "override"),
    [("[sample]\nmax_attempts = 2", "sample.tries=3"), ("[sample]\ntries = 2", "sample.max_attempts=3")],
)
def test_an_override_wins_with_an_old_name_or_a_new_one(tmp_path: Path, profile: str, override: str):
    assert load_config(a_profile(tmp_path, profile), [override]).sample.max_attempts == 3


def test_an_old_key_next_to_the_new_one_is_refused(tmp_path: Path):
    message = refusal(tmp_path, text="[sample]\ntries = 2\nmax_attempts = 3")
    assert "sample.tries is the old name of sample.max_attempts, but both are set" in message


def test_a_note_is_printed_once_however_often_a_command_reads_the_profile(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = a_profile(tmp_path, "[sample]\ntries = 2")
    resolve_config(str(path), run_name=None, judge=None, seed=1, overrides=["pair.error_share=0.2"])
    printed = capsys.readouterr().err
    assert printed.count("sample.tries is deprecated") == printed.count("pair.error_share is deprecated") == 1


def test_later_overrides_win_over_earlier_ones_and_both_over_the_profile(tmp_path: Path):
    profile = a_profile(tmp_path, "[sample]\nk = 3\ntop_p = 0.5")
    sample = load_config(profile, ["sample.k=4", "sample.k=5"]).sample
    assert (sample.k, sample.top_p) == (5, 0.5)


def test_an_override_reaches_into_a_union(tmp_path: Path):
    config = load_config(a_profile(tmp_path), ["data.source.kind=miniature", 'data.source.categories=["dial"]'])
    assert config.data.source.model_dump() == {"kind": "miniature", "categories": ("dial",)}


def layered(folder: Path, **texts: str) -> Path:
    """Writes profiles with these names, each based on the one after it; returns the first."""
    (folder / "base").mkdir(exist_ok=True)
    names = list(texts)
    for i, (name, text) in enumerate(texts.items()):
        below = f"{'base/' if i == 0 else ''}{names[i + 1]}.toml" if i + 1 < len(names) else None
        path = folder / ("" if i == 0 else "base") / f"{name}.toml"
        path.write_text((f'base = "{below}"\n' if below else "") + text, encoding="utf-8")
    return folder / f"{names[0]}.toml"


def test_a_profile_has_its_bases_values_except_those_that_it_sets(tmp_path: Path):
    path = layered(
        tmp_path,
        mine="name = 'mine'\n[sample]\nk = 3",
        middle="[sample]\nk = 4\ntop_p = 0.5\n[data.source]\ncategories = ['dial']",
        lowest="seed = 7\n[sample]\nk = 5\ntop_p = 0.4\ntemperature = 0.6\n"
        "[data.source]\nkind = 'miniature'\ncategories = ['cups', 'relay']",
    )
    whole = "name = 'mine'\nseed = 7\n[sample]\nk = 3\ntop_p = 0.5\ntemperature = 0.6\n"
    (tmp_path / "whole.toml").write_text(whole + "[data.source]\nkind = 'miniature'\ncategories = ['dial']")
    assert load_config(path) == load_config(tmp_path / "whole.toml")
    assert load_config(path, ["sample.temperature=0.9"]).sample.temperature == 0.9


def test_a_section_of_another_kind_inherits_nothing_from_its_base(tmp_path: Path):
    path = layered(
        tmp_path,
        mine="name = 'mine'\n[data.source]\nkind = 'file'\npath = 'a.jsonl'",
        base="[data.source]\nkind = 'miniature'\ncategories = ['dial']",
    )
    assert load_config(path).data.source == FileSource(path=Path("a.jsonl"))
    assert load_config(path, ["data.source.kind=instructions"]).data.source == InstructionSource()


def test_a_removed_key_is_ignored_with_what_to_write_instead(tmp_path: Path):
    notes: list[str] = []
    profile = "[model]\npath = 'models/M'\nhub_id = 'org/M'\nhub_revision = 'v1'"
    config = load_config(a_profile(tmp_path, profile), note=notes.append)
    assert config == load_config(a_profile(tmp_path, "[model]\npath = 'models/M'"))
    assert 'write model.path = "hf://org/M"' in notes[0] and "follows the address" in notes[1]


def test_old_and_new_names_in_a_profile_and_its_base_are_one_setting(tmp_path: Path):
    old, new = "[thinkpo]\nmost_pairs = 3\n[sft]\nepochs = 2", "[recipe]\nkind = 'thinkpo'\nmax_pairs = 4"
    for mine, base, pairs in ((old, new, 3), (new, old, 4)):
        notes: list[str] = []
        config = load_config(layered(tmp_path, mine=f"name = 'mine'\n{mine}", base=base), note=notes.append)
        assert config.recipe == ThinkPo(max_pairs=pairs, sft=SftConfig(epochs=2))
        named = tmp_path / ("mine.toml" if mine == old else "base/base.toml")
        assert len(notes) == 3 and all(note.startswith(f"{named}: ") for note in notes)


@pytest.mark.parametrize(
    ("mine", "base", "overrides", "says"),
    [
        ("", "[sample]\nk = 1", [], r"sample\.k: .*equal to 2 \(found 1\) \(\S+/base/below\.toml\)$"),
        ("[sample]\nk = 1", "[sample]\nk = 2", [], r"sample\.k: .* \(found 1\)$"),
        ("", "[sample]\nk = 2", ["sample.k=1"], r"sample\.k: .* \(found 1\) \(override of sample\.k\)$"),
        ("", "[sample]\nkk = 2", [], r"sample\.kk: unknown key; .*\(\S+/base/below\.toml\)$"),
        (
            "[train]\nmicro_batch_size = 3",
            "[train]\nbatch_size = 32",
            [],
            r"batch_size 32 is not a multiple of micro_batch_size 3 \(batch_size from \S+/base/below\.toml\)$",
        ),
        (
            "[train]\nmax_tokens = 300",
            "[data]\nmax_prompt_tokens = 256",
            [],
            r"more than train\.max_tokens \(300\).*\(data\.max_prompt_tokens from \S+/base/below\.toml\)$",
        ),
    ],
)
def test_a_wrong_value_is_reported_with_its_file(tmp_path: Path, mine: str, base: str, overrides: list[str], says: str):
    path = layered(tmp_path, mine=f"name = 'mine'\n{mine}", below=base)
    with pytest.raises(InputError) as refused:
        load_config(path, overrides)
    assert re.search(says, str(refused.value)), refused.value


def test_what_an_override_says_is_not_repeated_if_its_key_is_unknown(tmp_path: Path):
    assert "hush" not in refusal(tmp_path, "storage.secret_key=hush")


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("base = 'nowhere.toml'\nname = 'a'", r"there is no profile \S+nowhere\.toml"),
        ("base = 'mine.toml'\nname = 'a'", r'base is "mine\.toml", which is based on this one'),
        ("base = 'laptop'\nname = 'a'", r"base is 'laptop', expected the path of a profile from this folder"),
        ("base = 4\nname = 'a'", r"base is '?4'?, expected the path of a profile"),
        ("base = 'other.toml'", r"has a base but no name, so it would get the base's name"),
    ],
)
def test_an_invalid_base_is_refused(tmp_path: Path, text: str, pattern: str):
    (tmp_path / "other.toml").write_text("name = 'other'")
    with pytest.raises(InputError, match=pattern):
        load_config(a_profile(tmp_path, text))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["sample.kk=4"],
            "sample.kk: unknown key; known here: calculator, evaluation_max_attempts,",
        ),
        (["smaple.k=4"], "smaple: unknown key; known here: budget, cluster,"),
        (["data.source.kind=miniature", "data.source.pth=x"], "data.source.pth: unknown key; known here: categories"),
        (["evaluation.judge.x=1"], "evaluation.judge.x: unknown key; known here: answer_pattern"),
        (["sample.k=1"], "sample.k: Input should be greater than or equal to 2 (found 1)"),
        (
            ["sample.k=four"],
            'sample.k: Input should be a valid integer, unable to parse string as an integer (found "f',
        ),
        (["sample.temperature=0"], "sample.temperature: Input should be greater than 0"),
        (["data.source.kind=file"], "data.source.path: Field required"),
        (["data.source.kind=web"], "expected tags: 'miniature', 'file'"),
        (["pair.rho=0.6"], "rho is 0.6, expected 'auto' or a number from 0 to 0.5"),
        (["pair.rho=x"], "pair.rho: Input should be 'auto'"),
        (["pair.rho=nan"], "pair.rho: Input should be a finite number"),
        (["pair.min_margin=inf"], "pair.min_margin: Input should be a finite number"),
        (["prompt.variant=loud"], "prompt.variant: Input should be 'generic', 'specific'"),
        (["judge.answer_pattern=(a"], "answer_pattern is not a regular expression"),
        (["judge.answer_pattern=a"], "answer_pattern has 0 groups, expected one"),
        (["judge.answer_pattern=(a)(b)"], "answer_pattern has 2 groups, expected one"),
        (["train.batch_size=33"], "batch_size 33 is not a multiple of micro_batch_size 32"),
        (
            ["trainer.workers=2"],
            "train.batch_size 32 is not a multiple of train.micro_batch_size × trainer.workers = 64",
        ),
        (["data.max_prompt_tokens=600"], "is 696, more than train.max_tokens (512)"),
        (["name=../up"], "name: String should match pattern"),
        (
            ["folder=gs://bucket/x"],
            "folder: expected a folder, or s3://bucket or s3://bucket/prefix in letters, digits",
        ),
        (["folder=s3:/bucket"], "folder: expected a folder, or s3://bucket"),
        (["folder=s3://Bucket/a b"], "folder: expected a folder, or s3://bucket"),
        (
            ["judge={kind='pairwise', model='m', endpoint={base_url='https://key@host/v1'}}"],
            "judge.endpoint.base_url: the address has a user name or key before the @",
        ),
        (["storage.endpoint_url=https://me:secret@host"], "storage.endpoint_url: the address has a user name or key"),
        (["storage.endpoint_url=http://[::1"], "storage.endpoint_url: Invalid IPv6 URL"),
        (["storage.secret_key=x"], "storage.secret_key: unknown key; known here: cache, endpoint_url"),
        (["sample=4"], "sample: Input should be a valid dictionary"),
        (["name.first=x"], "override of name.first: 'name' is a value and not a section"),
        (["sample.k"], "override 'sample.k' has no value, expected section.key=value"),
        (["=4"], "override '=4' has no value"),
        (["sample..k=4"], "has an empty name in its key"),
        (["smaple.k=4"], "did you mean sample?"),
        (["name='x"], "begins with a quote and is not TOML"),
        (["seed=" + "9" * 5000], "is not readable TOML: Exceeds the limit"),
        (["seed=0x" + "f" * 5000], "seed is a number of 20000 bits"),
        (["seed=" + "[" * 100_000], "is not readable TOML: it is nested too deeply"),
        ([".".join(["a"] * 100_000) + "=1"], "are nested too deeply"),
        (["a" * 5000 + "=1"], "(5000 characters): unknown key"),
        (["name=" + "/" * 5000], "(5002 characters)"),
        (
            ["train.epochs=99999999999999999999"],
            "train: epochs is 99999999999999999999, expected at most 2,147,483,647",
        ),
        (["train.rounds=0"], "train.rounds: Input should be greater than or equal to 1 (found 0)"),
        (
            ["train.rounds=3"],
            "train.rounds is 3, and data.per_iteration (400) is not a multiple of it, so rounds can't have equal "
            "numbers of prompts: set data.per_iteration to 402, or train.rounds to 2",
        ),
        (["train.rounds=500"], "set data.per_iteration to 500, or train.rounds to 400"),
        (["train.rounds=2", "recipe.kind=thinkpo"], 'train.rounds is 2 and recipe.kind is "thinkpo"'),
        (["pair.replay_share=0.5", "recipe.kind=thinkpo"], 'pair.replay_share is 0.5 and recipe.kind is "thinkpo"'),
        (["pair.replay_share=1"], "pair.replay_share: Input should be less than 1 (found 1)"),
        (["trainer.stall_seconds=1e300"], "trainer: stall_seconds is 1e+300, expected at most"),
        (["sample.k=1979-05-27"], 'sample.k: Input should be a valid integer (found "1979-05-27")'),
        (["model.path=a\0b"], r"model.path contains the character '\x00'"),
        (["model.path=\udcff"], "expected text in UTF-8"),
        (["folder=~/runs"], "folder is ~/runs, but ~ isn't expanded here: write the path out"),
        (["judge=4"], "judge: expected a section whose key kind"),
        (["judge.answer_pattern=(a{99999999999})"], "answer_pattern is not a regular expression"),
        (
            ["judge={kind='pairwise', model='m', endpoint={base_url='http://127.0.0.1:99999/v1'}}"],
            "judge.endpoint.base_url: Port out of range 0-65535",
        ),
        (
            ["judge={kind='pairwise', model='m', endpoint={base_url='http://'}}"],
            "judge.endpoint.base_url: 'http://' isn't an address: expected one such as http://localhost:8000",
        ),
    ],
)
def test_a_bad_value_is_refused_with_its_key_and_what_was_expected(tmp_path: Path, overrides: list[str], message: str):
    assert message in refusal(tmp_path, *overrides, text='name = "mine"\n')


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://127.0.0.1:99999/v1", "Port out of range 0-65535: 'http://127.0.0.1:99999/v1' isn't an address"),
        ("http://127.0.0.1:x/v1", "Port could not be cast to integer value as 'x'"),
        ("http://::1:8000/v1", "an IPv6 address goes in brackets, http://[::1]:8000/v1"),
        ("http://[::1:8000/v1", "an IPv6 address goes in brackets"),
        ("http:///v1", "expected one such as http://localhost:8000"),
        ("http://local host:8000/v1", "contains white space"),
        ("http://localhost:8000/v1 ", "contains white space"),
        ("localhost:8000/v1", "String should match pattern"),
        ("ftp://localhost/v1", "String should match pattern"),
        ("http://h:8000/v1/chat/completions", "is longer than the server's base URL: shorten it to 'http://h:8000/v1'"),
        ("http://h:8000/v1/chat/completions/", "shorten it to 'http://h:8000/v1'"),
        ("http://h:8000/v1/models", "shorten it to 'http://h:8000/v1'"),
    ],
)
def test_an_invalid_address_is_refused_before_anything_starts(tmp_path: Path, url: str, message: str):
    for section in ("judge={kind='pairwise', ", "data.synthetic={"):
        override = f"{section}model='m', endpoint={{base_url='{url}'}}}}"
        assert message in refusal(tmp_path, override, text='name = "mine"\n')


@pytest.mark.parametrize(
    "url", ["http://[::1]:8000/v1", "https://api.openai.com/v1/", "http://localhost", "http://h:1/v1"]
)
def test_a_valid_address_is_accepted(url: str):
    assert Endpoint(base_url=url).base_url == url


def test_all_faults_of_a_profile_are_reported_at_once(tmp_path: Path):
    message = refusal(tmp_path, "sample.kk=4", "pair.min_margin=-1")
    assert "sample.kk" in message and "pair.min_margin" in message


def test_a_missing_profile_is_refused_with_a_list_of_those_that_exist(tmp_path: Path):
    a_profile(tmp_path)
    with pytest.raises(InputError, match=r"no profile .*labtop\.toml; profiles in .*: mine"):
        load_config(tmp_path / "labtop.toml")


@pytest.mark.parametrize(
    "content",
    [
        b"name = ",
        b"\xff\xfe",
        b"[sample]\nk = 1\nk = 2",
        b"seed = " + b"9" * 5000,
        b"x = " + b"[" * 100_000 + b"]" * 100_000,
        b"x = " + b"{a = " * 10_000 + b"1" + b"}" * 10_000,
    ],
    ids=["no value", "not UTF-8", "a key twice", "5,000 digits", "arrays in arrays", "tables in tables"],
)
def test_a_profile_that_is_not_toml_is_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(InputError, match="not readable TOML") as refused:
        load_config(path)
    assert len(str(refused.value)) < 500 and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * 100_000, "is not readable JSON: it is nested too deeply"),
        ('{"seed": ' + "9" * 5000 + "}", "is not readable JSON: Exceeds the limit"),
        ("[1]", "is a single JSON value, expected sections and keys"),
        ('{"name": "\\ud800"}', "expected text in UTF-8"),
        (" " * 2**21, "has more than 1,048,576 bytes"),
    ],
    ids=["deep", "5,000 digits", "a list", "half a character", "huge"],
)
def test_a_damaged_config_json_is_refused(tmp_path: Path, content: str, message: str):
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(InputError) as refused:
        load_config(path)
    assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("place", ["/dev", "/dev/zero"])
def test_a_profile_that_is_not_a_file_is_refused_and_not_read(tmp_path: Path, place: str):
    (tmp_path / "mine.toml").symlink_to(place)
    with pytest.raises(InputError, match="is not a file"):
        load_config(tmp_path / "mine.toml")


def test_a_profile_that_begins_with_a_byte_order_mark_is_read(tmp_path: Path):
    assert load_config(a_profile(tmp_path, '\ufeffname = "marked"')).name == "marked"


@given(st.text(max_size=30), st.text(max_size=30))
def test_no_override_crashes_the_parser(key: str, value: str):
    with contextlib.suppress(InputError):
        load_config(PROFILES[0], [f"{key}={value}"])


def test_a_run_in_a_bucket_has_its_own_working_copy(tmp_path: Path):
    configs = [
        load_config(a_profile(tmp_path), [f"folder={url}"]) for url in ("s3://one/a", "s3://one/b", "s3://two/a")
    ]
    assert [config.place for config in configs] == ["s3://one/a/laptop", "s3://one/b/laptop", "s3://two/a/laptop"]
    configs.append(
        load_config(a_profile(tmp_path), ["folder=s3://one/a", "storage.endpoint_url=http://elsewhere:9000"])
    )
    assert len({config.root for config in configs}) == 4
    assert all(config.root.is_relative_to(".cache/tpo") for config in configs)
    assert all(RunConfig.model_validate_json(config.model_dump_json()) == config for config in configs)


def test_the_seeds_of_two_attempts_are_further_apart_than_any_k():
    (upper,) = (limit.le for limit in type(RunConfig().sample).model_fields["k"].metadata if hasattr(limit, "le"))
    assert upper < SEED_STRIDE


def loaded_after(code: str) -> list[str]:
    report = f"import sys; print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [line for line in done.stderr.splitlines() if line != "[]"]


@pytest.mark.parametrize(
    "code",
    [
        "import tpo.config.load, tpo.records, tpo.storage.store, tpo.data.prompt_files, tpo.report.summary",
        "import tasks.handles, prompts.thought, flows.preflight",
        "from flows.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: pass",
        "from flows.cli.main import main\nimport contextlib, io\n"
        "with contextlib.redirect_stdout(io.StringIO()): main(['plan', '--profile', 'llama3-8b-ste'])",
        "from flows.cli.main import main\nimport contextlib, io\n"
        "with contextlib.redirect_stderr(io.StringIO()): main(['iterate', '--set', 'sample.k=1'])",
    ],
    ids=["config, records and store", "handles, prompts and preflight", "--help", "a plan", "a refused profile"],
)
def test_nothing_heavy_is_imported_before_there_is_something_to_do(code: str):
    assert loaded_after(code) == []


@pytest.mark.parametrize(
    ("named", "pattern"),
    [
        ({"instruction_ids_column": "ids"}, "instruction_ids_column is set but kwargs_column isn't"),
        ({"kwargs_column": "kwargs"}, "kwargs_column is set but instruction_ids_column isn't"),
    ],
)
def test_instructions_are_ids_with_arguments(named: dict[str, str], pattern: str):
    with pytest.raises(ValidationError, match=pattern):
        RunConfig.model_validate({"data": {"source": {"kind": "file", "path": "a.jsonl", **named}}})


@pytest.mark.parametrize(
    ("synthetic", "pattern"),
    [
        ({"endpoint": {"base_url": "http://here/v1"}}, "endpoint is set but model isn't"),
        ({"pool": 5}, "pool is 5, fewer than the 8 examples"),
        ({"temperature": 0}, "temperature"),
        ({}, "judge.kind is verifier, which needs references or verifiable instructions"),
    ],
)
def test_prompts_that_a_model_writes_need_a_model_examples_and_a_judge_without_references(
    synthetic: dict[str, object], pattern: str
):
    with pytest.raises(ValidationError, match=pattern):
        RunConfig.model_validate({"data": {"synthetic": synthetic}})


@pytest.mark.parametrize("section", ["engine", "judge_engine"])
def test_float32_weights_are_not_quantized(tmp_path: Path, section: str):
    asked = f"{section}.quantization=fp8_per_channel"
    assert "set dtype to bfloat16 (or float16), or quantization to none" in refusal(tmp_path, asked)
    config = load_config(a_profile(tmp_path), [asked, f"{section}.dtype=bfloat16"])
    assert getattr(config, section).precision == {"dtype": "bfloat16", "quantization": "fp8_per_channel"}
