"""Text that nobody here wrote goes through: the AlpacaEval instructions, where they lie beside the checkout."""

from pathlib import Path

import pytest

from tests.end_to_end.conftest import ROOT, Iterate
from tpo.storage.store import read_manifest

INSTRUCTIONS = ROOT.parent / "shared" / "data" / "alpaca_eval_instructions.jsonl"

pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(not INSTRUCTIONS.exists(), reason="no AlpacaEval instructions here"),
]


def test_the_alpaca_eval_instructions_run_an_iteration(iterate: Iterate):
    source = f'data.source={{kind="file", path="{INSTRUCTIONS}", reference_column="dataset"}}'
    # No answer of the miniature's is right here, so the judge's liking for length alone tells responses apart.
    done = iterate(
        1,
        source,
        "data.per_iteration=100",
        "data.validation=50",
        "data.test=50",
        "data.max_prompt_tokens=416",
        "judge.length_bias=1.0",
        "pair.min_margin=0",
        "validation.min_parse_rate=0",
        "train.epochs=1",
        name="alpaca",
    )
    assert done.returncode == 0, done.stderr[-4000:]
    run = Path(iterate.folder) / "alpaca"  # type: ignore[attr-defined]
    dropped: dict[str, int] = {}
    for folder in ("iter_0/prompts/validation", "iter_0/prompts/test", "iter_1/prompts"):
        manifest = read_manifest(run / folder)
        assert manifest is not None and manifest.account is not None
        for reason, count in manifest.account["dropped"].items():
            dropped[reason] = max(dropped.get(reason, 0), count)
    assert dropped["too_long"] > 0
    assert (run / "report.html").exists()
