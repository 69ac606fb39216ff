"""`make judge-check`: how good is a judge? Any judge on a file of preferences, alone or with another, and under attack.

Responses are judged as a run judges them, by the same stage: replies are journaled, spending is in a ledger, and a
second call asks for nothing that is there. No Prefect runs.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from flows.preflight import check_judging
from flows.recipes import profile_path, working
from tasks.attack import asked_about, attacked_pairs
from tasks.handles import JudgeInput, SamplingSpec
from tasks.judge import judge, judged_already
from tasks.judge_numbers import CONFIDENCE, Opinions, attack_rows, compared, judge_row
from tasks.preferences import store_preferences, stored_preferences
from tpo.config.benchmarks import EvaluationConfig
from tpo.config.data import DataConfig, ModelConfig
from tpo.config.gate import GateConfig
from tpo.config.judges import JudgeConfig, VerifierJudge, checks_instructions
from tpo.config.load import load_config
from tpo.config.resources import EngineConfig, TrainerConfig
from tpo.config.run import RunConfig
from tpo.data.preference_files import PLACE, Preference, PreferenceRows, read_preferences
from tpo.errors import InputError
from tpo.hub.fetch import fetched
from tpo.records import Judgment, Score
from tpo.report.judge_check import CHECK, CHECK_PAGE, JudgeCheckReport, as_markdown, write_check
from tpo.storage.disk import write_atomically
from tpo.storage.ledger import read_ledger
from tpo.storage.lock import only_writer
from tpo.storage.store import complete_artifact, read_rows

KINDS = tuple(get_args(member)[0].model_fields["kind"].default for member in get_args(get_args(JudgeConfig)[0]))
"""The kinds of judges."""


@dataclass(frozen=True)
class JudgeCheckOptions:
    """What `judge-check` is asked for."""

    judges: Sequence[str]
    """One or two judges: a kind with its defaults, a profile, or a TOML file with a section [judge]."""
    data: Path
    """The file of preferences."""
    model: str | None = None
    """The first judge's model, if it is another one than the profile's."""
    profile: str = "laptop"
    """Whose engines a judge that is named by its kind runs on."""
    folder: Path = Path("runs")
    """Where the folder of the check is."""
    run_name: str | None = None
    """Name of that folder."""
    limit: int | None = None
    """Only the first so many preferences."""
    attack: bool = False
    """Whether to run the attacks."""
    overrides: Sequence[str] = ()
    """Overrides of the profiles, for all judges."""


def check_judges(options: JudgeCheckOptions) -> JudgeCheckReport:
    """Measures one judge or two on a file of preferences, and writes the report into the check's folder.

    Raises `InputError` before anything is judged if a judge, the file or the machine can't do it.
    """
    found = read_preferences(options.data, limit=options.limit)
    configs = [_config_of(options, i, found) for i in range(len(options.judges))]
    for config in configs:
        if not _is_judged(config, found.rows, attacked=options.attack):
            check_judging(config)
    root = configs[0].root
    with only_writer(root), working(configs[0].metrics):
        plain = store_preferences(root, "preferences", found.rows)
        rows, said = [], []
        for config in configs:
            place = _place(config.judge)
            said.append(_judged(config, place, plain))
            spent = [entry for entry in read_ledger(root) if entry.stage == f"{place}/judgments"]
            row = judge_row(config.judge, found.rows, said[-1], spent)
            if options.attack:
                attacked = attacked_pairs(config.judge, found.rows, plain_too=False)
                stored = store_preferences(root, f"{place}/attacks", asked_about(attacked, plain_too=False))
                row = replace(row, attacks=attack_rows(attacked, said[-1], _judged(config, f"{place}/attacks", stored)))
            rows.append(row)
        pair = compared(found.rows, *said) if len(said) == 2 else None
        report = JudgeCheckReport(
            str(options.data), found.shape, len(found.rows), found.left_out, CONFIDENCE, rows, pair
        )
        write_atomically(root / CHECK, write_check(report))
        write_atomically(root / CHECK_PAGE, as_markdown(report).encode())
    return report


def folder_of(options: JudgeCheckOptions) -> Path:
    """The folder of a check."""
    parts = ["judge-check", *(Path(judge).stem for judge in options.judges), options.data.name.partition(".")[0]]
    return options.folder / (options.run_name or "-".join(parts))


def _config_of(options: JudgeCheckOptions, i: int, found: PreferenceRows) -> RunConfig:
    """The config that one judge works with."""
    name = options.judges[i]
    changes = [f'judge.model="{options.model}"'] if options.model and i == 0 else []
    if name in KINDS:
        kind = f'judge={{kind="{name}"' + (f', model="{options.model}"' if changes else "") + "}"
        written = load_config(profile_path(options.profile), [kind, *options.overrides])
    else:
        written = load_config(profile_path(name), [*changes, *options.overrides])
    place = folder_of(options)
    config = fetched(_alone(written, place))
    if isinstance(config.judge, VerifierJudge):
        _check_references(options.data, config.judge, found.rows)
    return config


def _is_judged(config: RunConfig, rows: Sequence[Preference], *, attacked: bool) -> bool:
    """Whether all that a judge is asked about has been judged, so that it needn't be there any more."""
    place = _place(config.judge)
    asked = [("preferences", place, rows)]
    if attacked:
        shown = asked_about(attacked_pairs(config.judge, rows, plain_too=False), plain_too=False)
        asked.append((f"{place}/attacks", f"{place}/attacks", shown))
    return all(
        (given := stored_preferences(config.root, folder, some)) is not None
        and judged_already(config, _spec(config, of), given) is not None
        for folder, of, some in asked
    )


def _alone(written: RunConfig, place: Path) -> RunConfig:
    """The judge and its engines, without what only a run needs."""
    update = {
        "name": place.name,
        "folder": place.parent,
        "model": ModelConfig(),
        "engine": EngineConfig(),
        "trainer": TrainerConfig(),
        "data": DataConfig(),
        "gate": GateConfig(),
        "evaluation": EvaluationConfig(judge=VerifierJudge()),
    }
    return written.model_copy(update=update)


def _check_references(path: Path, verifier: VerifierJudge, rows: Sequence[Preference]) -> None:
    """A verifier needs references or constraints, which most files of preferences lack."""
    if checks_instructions(verifier):
        known, columns = any(row.constraints for row in rows), "columns instruction_id_list and kwargs"
    else:
        known, columns = any(row.reference for row in rows), "a column reference or answer"
    if not known:
        raise InputError(f"{path} has nothing for a verifier to compare with: expected {columns} ({PLACE})")


def _place(judge_config: JudgeConfig) -> str:
    """The folder of a judge's work, below the check's: another judge, or another mode of it, has its own."""
    values = judge_config.model_dump_json(exclude={"ridge", "length_bias", "endpoint"})
    return f"{judge_config.kind}-{hashlib.sha256(values.encode()).hexdigest()[:8]}"


def _judged(config: RunConfig, place: str, given: JudgeInput) -> Opinions:
    scored = judge.fn(config, _spec(config, place), given.samples, given.prompts)
    judgments = complete_artifact(config.root / place / "judgments")
    return Opinions(read_rows(judgments, Judgment), read_rows(scored.scores, Score))


def _spec(config: RunConfig, place: str) -> SamplingSpec:
    return SamplingSpec(place, "evaluate", config.prompt, config.judge, config.sample)
