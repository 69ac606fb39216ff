"""Claims about the gate's section: which scores a profile can name, and what is refused or remarked before work."""

from typing import Any

import pytest
from pydantic import ValidationError

from flows.cli.evaluate import evaluation_config
from tpo.config.gate import GateConfig
from tpo.config.run import RunConfig
from tpo.planning.gate import gate_misfits

BIASED = {"kind": "verifier", "length_bias": 0.3}
CUSTOM = {"kind": "custom", "path": "a.jsonl", "reference_column": "answer", "limit": 500}


def a_config(*scores: str, **sections: Any) -> RunConfig:
    gate = {"scores": scores, **sections.pop("gate", {})}
    return RunConfig.model_validate({"judge": BIASED, "gate": gate} | sections)


def test_there_is_no_gate_by_default():
    assert not RunConfig().gate.is_on and not list(gate_misfits(RunConfig()))


@pytest.mark.parametrize(
    ("scores", "sections"),
    [
        (["validation"], {}),
        (["second_judge", "validation"], {}),
        (["verifier"], {"evaluation": {"verifier": {}}}),
        (["mine"], {"evaluation": {"benchmarks": [CUSTOM | {"name": "mine"}]}}),
        (["second_judge"], {"judge": {"kind": "armorm"}, "gate": {"margins": {"second_judge": 0.1}}}),
    ],
)
def test_scores_are_those_of_judges_of_the_validation_answers_and_benchmarks(scores: list[str], sections: Any):
    assert a_config(*scores, **sections).gate.is_on


@pytest.mark.parametrize(
    ("scores", "sections", "said"),
    [
        (
            ["gsm8k"],
            {},
            "gate.scores has gsm8k, which is no score: expected some of validation, second_judge, verifier",
        ),
        (["test"], {}, "the test prompts are kept for the report"),
        (["validation", "validation"], {}, "scores has validation twice"),
        (["validation"], {"gate": {"margins": {"gsm8k": 0.1}}}, "margins has gsm8k, but scores has validation"),
        (["second_judge"], {"judge": {}}, "evaluation.judge is the run's judge itself"),
        (["second_judge"], {"evaluation": {"second_opinion": "never"}}, 'set it to "auto"'),
        (["verifier"], {}, "name second_judge, which is one"),
        (["verifier"], {"evaluation": {"judge": {"kind": "armorm"}}}, r"add a section \[evaluation.verifier\]"),
        (["verifier"], {"evaluation": {"benchmarks": [CUSTOM | {"name": "verifier"}]}}, "give it another"),
        (["validation"], {"recipe": {"kind": "thinkpo"}}, 'recipe.kind is "thinkpo", whose models'),
        (["validation"], {"gate": {"confidence": 0.5}}, "greater than 0.5"),
        (["validation"], {"gate": {"accept": [0]}}, "greater than or equal to 1"),
    ],
)
def test_other_scores_are_refused_with_what_there_is(scores: list[str], sections: Any, said: str):
    with pytest.raises(ValidationError, match=said):
        a_config(*scores, **sections)


@pytest.mark.parametrize(
    ("sections", "second"),
    [
        ({}, ["second_judge"]),
        ({"judge": {}}, []),
        ({"evaluation": {"second_opinion": "never"}}, []),
        ({"evaluation": {"judge": {"kind": "armorm"}}}, []),
        ({"evaluation": {"judge": {"kind": "armorm"}, "second_opinion": "always"}}, ["second_judge"]),
        ({"evaluation": {"judge": {"kind": "armorm"}, "verifier": {}}}, ["verifier"]),
    ],
)
def test_a_second_judge_reads_the_validation_answers_if_it_is_free_or_asked_for(sections: Any, second: list[str]):
    assert list(a_config(**sections).second_judges) == second


def test_a_gate_that_names_a_model_as_second_judge_asks_it():
    assert list(a_config("second_judge", evaluation={"judge": {"kind": "armorm"}}).second_judges) == ["second_judge"]


@pytest.mark.parametrize(
    ("score", "sections", "said"),
    [
        ("validation", {"data": {"validation": 200}}, None),
        ("validation", {"data": {"validation": 100}}, "needs about 150 prompts"),
        ("validation", {"data": {"validation": 100}, "gate": {"margin": 0.05}}, None),
        ("validation", {"data": {"validation": 100}, "gate": {"margin": 0.0}}, None),
        ("validation", {"data": {"validation": 100}, "judge": {"kind": "armorm"}}, None),
        ("mine", {"evaluation": {"benchmarks": [CUSTOM | {"name": "mine", "limit": 60}]}}, "the benchmark mine has 60"),
    ],
)
def test_too_few_prompts_for_the_margin_are_remarked(score: str, sections: Any, said: str | None):
    found = [str(each) for each in gate_misfits(a_config(score, **sections))]
    assert (said is None and not found) or (said is not None and said in found[0])


def test_a_verifier_without_references_is_refused_before_work():
    source = {"kind": "file", "path": "a.jsonl"}
    (found,) = gate_misfits(a_config("second_judge", data={"source": source, "validation": 500}))
    assert found.certain and "data.source names no reference_column" in str(found)


def test_an_evaluation_has_no_gate():
    config = evaluation_config(
        "miniature", benchmarks=["gsm8k=a.jsonl"], profile=None, run_name=None, variant=None, limit=None,
        max_new_tokens=None, overrides=['gate.scores=["validation"]'],
    )  # fmt: skip
    assert config.gate == GateConfig()
