"""One-off: old and new say the same of every state of the fault matrix."""

import json, random, sys, os
from pathlib import Path
from tests.faults import mock_run
from tests.faults.test_stages import MATRIX, WRITTEN
from tests.faults.mock_run import FAULTS


def main(parent: Path) -> None:
    from tests.faults import old_current
    from flows import recipes
    from tpo.report.summary import read_summary
    from tpo.errors import StoreError
    from tpo.storage import current

    mock_run.prepare()
    log = parent / "states.jsonl"

    def old(config, t):
        path = config.root / "summary.json"
        if not (current._is_kept(config) and path.exists() and (config.root / "report.html").exists()):
            return False
        if old_current.completed(config, t) < t:
            return False
        try:
            return read_summary(path).models[-1].iteration >= t
        except StoreError:
            return False

    run = mock_run._run

    def looked(folder, plan):
        config = mock_run.config_of(folder, plan)
        for t in range(plan.iterations + 2):
            try:
                a = old(config, t)
            except Exception as e:
                a = f"{type(e).__name__}"
            try:
                b = recipes.finished(config, t) is not None
            except Exception as e:
                b = f"{type(e).__name__}"
            made = current.iterations_made(config)
            try:
                done = old_current.completed(config, plan.iterations + 1)
            except Exception as e:
                done = f"{type(e).__name__}"
            note = (config.root / "finished.json").exists()
            with log.open("a") as out:
                out.write(json.dumps([str(folder), t, a, b, done, made, note]) + "\n")
        mock_run._listener.counts.clear()
        return run(folder, plan)

    mock_run._run = looked
    mock_run.make_seed(parent / "seed")
    loaded = mock_run.an_example(parent / "example", mock_run.Plan("pairwise", iterations=1))
    written = mock_run.an_example(parent / "written", mock_run.Plan("pairwise", iterations=1, synthetic=True))
    faults = {fault.name: fault for fault in FAULTS}
    for name, stage in (*MATRIX, *WRITTEN):
        example = written if stage == "synthesize" else loaded
        with mock_run.folder_for_runs(parent) as folder:
            broken = mock_run.break_run(faults[name], random.Random(f"{name} {stage}"), folder, example, stage)
            # once more from the finished state, and with each external file changed
            mock_run.attempt(folder, example.plan, folder / "log2.txt")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    from collections import Counter

    print(Counter((r[2], r[3], r[6]) for r in rows))
    print("old and new differ:", [r for r in rows if r[2] != r[3]][:20])
    print("how far:", Counter((r[4], r[5]) for r in rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
