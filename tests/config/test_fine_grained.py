"""Claims about the section of a fine-grained evaluation."""

import pytest
from pydantic import ValidationError

from tpo.config.fine_grained import CATEGORIES, FineGrainedConfig
from tpo.config.run import RunConfig


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"categories": ["one"]}, "categories has 1, expected two or more"),
        ({"categories": ["a b", "c", " A  B"]}, "categories has 'a b' and ' A  B': leave one of them out"),
        ({"categories": ["a", "[b]"]}, r"categories has '\[b\]', expected a name"),
        ({"categories": ["a", "b\nc"]}, "in one line"),
        ({"categories": ["a", " "]}, "expected a name of 1 to 60 characters"),
        ({"categories": ["a", "Unknown"]}, 'another than "unknown"'),
        ({"endpoint": {"base_url": "http://x/v1"}}, "endpoint is set but model isn't"),
        ({"min_prompts": 0}, "greater than or equal to 1"),
    ],
)
def test_what_cannot_be_rated_by_is_refused(values: dict[str, object], told: str):
    with pytest.raises(ValidationError, match=told):
        FineGrainedConfig.model_validate(values)


def test_it_is_off_by_default_and_has_the_papers_number_of_categories():
    assert RunConfig().evaluation.fine_grained is None
    assert len(CATEGORIES) == 20
