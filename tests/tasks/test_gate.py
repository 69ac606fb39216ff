"""Claims about the gate: which scores it compares and how, on stored scores, and what it says."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tasks.gate import decide, gate_stage, judge_score
from tasks.handles import ComparedScores, JudgedSamples
from tests.report.test_table import KNOWN
from tests.rows import a_sample, a_score
from tests.stored_run import write_prompts, write_round
from tpo.config.benchmarks import AlpacaEval, CustomBenchmark, Gsm8k
from tpo.config.gate import GateConfig, counts_wins
from tpo.config.judges import ArmoRMJudge, JudgeConfig, PairwiseJudge, VerifierJudge, compares
from tpo.config.run import RunConfig
from tpo.errors import GateError
from tpo.records import GateDecision, GateScore, Prompt
from tpo.report.gate import check_gate, sentence, why_stopped
from tpo.report.summary import Summary

Values = Mapping[str, float | None]
NAMES = [f"p{i}" for i in range(40)]


def scored(root: Path, name: str, values: Values) -> JudgedSamples:
    prompts = write_prompts(root, f"{name}/prompts", [Prompt(i, i) for i in values])
    groups = [[a_sample(i)] for i in values]
    return write_round(
        root, name, prompts, groups, lambda sample: a_score(sample.prompt_id, 0, values[sample.prompt_id])
    )


def found_of(
    root: Path, judge: JudgeConfig, before: Values, after: Values, *, baseline: Values | None = None, **gate: Any
) -> GateScore:
    compared = ComparedScores(
        "validation",
        judge,
        scored(root, "before", before),
        scored(root, "after", after),
        wins=baseline is None and counts_wins(judge),
        together=compares(judge),
        baseline=None if baseline is None else scored(root, "baseline", baseline),
    )
    return judge_score(compared, GateConfig(scores=("validation",), **gate))


def all_of(value: float, **others: float | None) -> dict[str, float | None]:
    return dict.fromkeys(NAMES, value) | others


def test_a_verifiers_scores_are_compared_by_their_means(tmp_path: Path):
    found = found_of(tmp_path, VerifierJudge(), all_of(1.0), all_of(1.0, p0=0.0, p1=0.0), margin=0.2)
    assert (found.before, found.after, found.compared) == (1.0, 0.95, "scores")
    assert found.difference == pytest.approx(-0.05) and found.outcome == "not_worse"


def test_a_reward_models_scores_are_compared_by_the_prompts_won_whatever_their_unit(tmp_path: Path):
    found = found_of(tmp_path, ArmoRMJudge(), all_of(100.0), all_of(100.1, p0=-5000.0), margin=0.02)
    assert found.difference == pytest.approx(39 / 40 - 0.5) and found.outcome == "not_worse"
    assert found.before == 100.0 and found.compared == "wins"


def test_a_comparing_judge_has_compared_the_new_answers_with_the_old_ones(tmp_path: Path):
    found = found_of(tmp_path, PairwiseJudge(), all_of(1.0), all_of(0.0, p0=0.5, p1=1.0), margin=0.02)
    assert found.difference == pytest.approx(1.5 / 40 - 0.5) and found.outcome == "worse"
    assert found.before is None, "what the old model won against the one before it says nothing here"


def test_scores_against_a_baseline_count_by_whether_they_are_above_it(tmp_path: Path):
    before, after = all_of(3.0), all_of(9.0, p0=1.0)
    found = found_of(tmp_path, ArmoRMJudge(), before, after, baseline=all_of(2.0), margin=0.2)
    assert (found.before, found.after) == (1.0, 0.975) and found.difference == pytest.approx(-0.025)


@pytest.mark.parametrize(
    ("judge", "benchmark", "wins"),
    [
        (VerifierJudge(), None, False),
        (ArmoRMJudge(), None, True),
        (PairwiseJudge(), None, True),
        (VerifierJudge(), Gsm8k(path="a.jsonl"), False),
        (ArmoRMJudge(), CustomBenchmark(path="a.jsonl"), True),
        (PairwiseJudge(), CustomBenchmark(path="a.jsonl"), False),
        (ArmoRMJudge(), AlpacaEval(path="a.jsonl"), False),
    ],
)
def test_only_scores_without_a_common_unit_are_compared_by_wins(judge: JudgeConfig, benchmark: Any, wins: bool):
    assert counts_wins(judge, benchmark) is wins


def test_prompts_without_a_score_for_the_new_model_are_counted_and_too_many_end_the_test(tmp_path: Path):
    few = found_of(tmp_path / "few", VerifierJudge(), all_of(1.0), all_of(1.0, p0=None), margin=0.2)
    assert (few.prompts, few.missing, few.outcome) == (39, 1, "not_worse")
    gaps = dict.fromkeys(NAMES[:20], None)
    many = found_of(tmp_path / "many", VerifierJudge(), all_of(1.0), all_of(1.0, **gaps), margin=0.2)
    assert (many.prompts, many.missing, many.outcome) == (20, 20, "unscored")
    none = found_of(tmp_path / "none", VerifierJudge(), all_of(1.0), dict.fromkeys(NAMES, None))
    assert (none.prompts, none.difference, none.outcome) == (0, None, "unscored")
    assert "no prompt has a score for both models" in sentence(none)


def test_a_model_that_is_the_one_before_it_passes_with_any_number_of_prompts(tmp_path: Path):
    answers = scored(tmp_path, "same", {"p": 1.0})
    same = ComparedScores("validation", VerifierJudge(), answers, answers)
    config = GateConfig(scores=("validation",), margin=0.0)
    assert judge_score(same, config, unchanged=True).outcome == "not_worse"
    assert judge_score(same, config).outcome == "unclear"


def test_a_decision_depends_on_every_setting_of_the_gate_and_on_the_scores(tmp_path: Path):
    answers = scored(tmp_path, "same", {"p": 1.0})
    other = scored(tmp_path, "other", {"p": 0.0})

    def made(after: JudgedSamples = answers, *, unchanged: bool = False, **gate: Any) -> tuple[Any, Any]:
        config = RunConfig.model_validate({"gate": {"scores": ["validation"]} | gate})
        stage = gate_stage(
            config, 1, [ComparedScores("validation", VerifierJudge(), answers, after)], unchanged=unchanged
        )
        return stage.inputs, stage.config

    settings: dict[str, Any] = {
        "margin": 0.3,
        "margins": {"validation": 0.3},
        "confidence": 0.8,
        "min_scored_share": 0.5,
    }
    assert all(made(**{name: value}) != made() for name, value in settings.items())
    assert made(other) != made() and made(unchanged=True) != made()
    assert made(accept=[1]) == made(), "what was found stays the same, whatever follows from it"


WORSE = GateScore(
    score="second_judge", judge="verifier (exact)", compared="scores", prompts=200, missing=0, before=0.615, after=0.48,
    difference=-0.135, low=-0.185, high=-0.085, margin=0.02, outcome="worse", needed=None,
)  # fmt: skip
FINE = dataclasses.replace(
    WORSE, score="validation", compared="wins", before=1.5, after=2.5, difference=0.1, low=0.05, high=0.15,
    outcome="not_worse",
)  # fmt: skip
UNCLEAR = dataclasses.replace(WORSE, difference=-0.01, low=-0.0305, high=0.01, outcome="unclear", needed=412)


def test_every_score_must_pass_unless_the_user_accepts_the_model():
    assert decide([FINE, WORSE], accepted=False) == GateDecision(False, False, [FINE, WORSE])
    assert decide([FINE, WORSE], accepted=True) == GateDecision(True, True, [FINE, WORSE])
    assert decide([FINE], accepted=True) == GateDecision(True, False, [FINE]), "it needed no acceptance"


@pytest.mark.parametrize(
    ("score", "said"),
    [
        (
            WORSE,
            "second_judge, by verifier (exact): 61.5 → 48.0 on 200 prompts; "
            "−13.5 points [−18.5, −8.5], allowed −2.0: worse",
        ),
        (
            FINE,
            "validation, by verifier (exact): 60.0 % won on 200 prompts; "
            "+10.0 points [+5.0, +15.0], allowed −2.0: not worse",
        ),
        (dataclasses.replace(WORSE, missing=3), "on 200 prompts, 3 without a score for the new model;"),
        (dataclasses.replace(WORSE, before=5.5, after=3.25), "5.500 → 3.250 on 200 prompts; −0.135"),
    ],
)
def test_a_finding_is_a_sentence_in_the_scores_unit(score: GateScore, said: str):
    assert said in sentence(score)


@pytest.mark.parametrize(
    ("scores", "margins", "said"),
    [
        ([FINE, WORSE], {}, 'SET="gate.accept=[2]" continues from M_2 as it is\n  SET="gate.margin=0.185" allows'),
        ([WORSE], {"second_judge": 0.05}, 'SET="gate.margins.second_judge=0.185" allows'),
        (
            [UNCLEAR],
            {},
            'SET="gate.margin=0.031" allows a model to be that much worse; the current one would be enough if',
        ),
        ([UNCLEAR], {}, "about 412 prompts showed the same difference (second_judge)"),
        ([dataclasses.replace(WORSE, outcome="unscored")], {}, "as it is\n  another M_2"),
    ],
)
def test_the_error_names_what_would_let_the_run_go_on(scores: list[GateScore], margins: dict[str, float], said: str):
    gate = {"scores": ["validation", "second_judge"], "margins": margins}
    config = RunConfig.model_validate({"judge": {"length_bias": 1.0}, "gate": gate})
    row = dataclasses.replace(KNOWN, model="M_2", iteration=2, gate=decide(scores, accepted=False))
    found = why_stopped(config, row)
    assert "doesn't promote M_2, so the loop stops before M_3" in found
    assert said in found and "laptop/report.html" in found
    summary = Summary("laptop", 0, 0.95, [row])
    check_gate(config, summary, 1)
    with pytest.raises(GateError, match="doesn't promote M_2"):
        check_gate(config, summary, 2)
