"""`make study`: a recipe on several seeds, alone or against another profile at equal budget."""

import time
from collections.abc import Sequence

from flows.cli.plan import plan_run
from flows.study.budget import planned_budget
from flows.study.gather import gather
from flows.study.runs import Process, RunRecipe, bring_all, to_do
from flows.study.setup import Job, StudySetup
from tpo.console import say
from tpo.errors import InputError
from tpo.planning.needs import readable_size
from tpo.planning.plan import Plan
from tpo.report.study import (
    STUDY,
    STUDY_PAGE,
    STUDY_TEXT,
    TOLERANCE,
    Budget,
    Study,
    render_markdown,
    unequal_amounts,
    write_study,
)
from tpo.report.study_page import print_study, render_study
from tpo.report.table import duration
from tpo.storage.disk import write_atomically
from tpo.storage.lock import only_writer
from tpo.storage.mirror import writing


def study(setup: StudySetup, run: RunRecipe, process: Process, *, allow_unequal: bool = False) -> Study:
    """Makes what is missing of a study, writes its pages and prints its tables.

    Raises `InputError` if a run can't be done here or if the budgets of two sides differ, unless that is allowed.
    """
    plans = [plan_run(next(iter(side.configs.values())), setup.iterations) for side in setup.sides]
    planned = [
        planned_budget(next(iter(side.configs.values())), plan) for side, plan in zip(setup.sides, plans, strict=True)
    ]
    check_budgets(setup, planned, allow_unequal=allow_unequal)
    left, started = to_do(setup), time.monotonic()
    say(_intent(setup, plans, left))
    _warn_of_disk(plans, left)
    failed = bring_all(left, setup.iterations, run, process=process) if left else {}
    found = gather(setup, failed=failed, planned=planned)
    config = setup.folder
    with only_writer(config.root), writing(config):
        write_atomically(config.root / STUDY_PAGE, render_study(found).encode())
        write_atomically(config.root / STUDY_TEXT, render_markdown(found).encode())
        write_atomically(config.root / STUDY, write_study(found))
    print_study(found)
    done = f"after {time.monotonic() - started:.0f} s" if left else "every run was complete: nothing to do"
    print(f"{config.name}: {done}. Page: {config.place}/{STUDY_PAGE}")
    return found


def check_budgets(setup: StudySetup, planned: Sequence[Budget], *, allow_unequal: bool) -> None:
    """Refuses two sides whose planned budgets differ by more than the tolerance, unless that is allowed."""
    if len(planned) < 2 or not (found := unequal_amounts(*planned)):
        return
    one, other = (side.name for side in setup.sides)
    difference = f"{one} and {other} have different budgets for a run: {'; '.join(found)}"
    if not allow_unequal:
        raise InputError(
            f"{difference}. More than {100 * TOLERANCE:.0f} % apart, a difference of scores may come from the budgets: "
            "change one of the profiles, or compare them anyway with UNEQUAL=1"
        )
    say(f"{difference}: compared anyway")


def _intent(setup: StudySetup, plans: Sequence[Plan], left: Sequence[Job]) -> str:
    """What will be done, in a line."""
    seeds = ", ".join(map(str, setup.seeds))
    complete = len(setup.jobs) - len(left)
    line = f"study {setup.name}: {setup.recipe.name} {setup.goal}".rstrip()
    line += f" with seeds {seeds}; {complete} of {len(setup.jobs)} runs are complete"
    if left:
        seconds = sum(plan.seconds for plan in plans) * len(left) / len(setup.jobs) * len(setup.seeds)
        line += f"; planned for the others: {duration(seconds)}"
    return line


def _warn_of_disk(plans: Sequence[Plan], left: Sequence[Job]) -> None:
    """Says if the runs together may write more than the disk has free; each by itself is checked by its recipe."""
    runs = sum(len(job.recipe.runs(job.config)) for job in left)
    needed, free = runs * sum(plan.disk.total for plan in plans) // len(plans), plans[0].cluster.disk_bytes
    if needed > free and plans[0].is_here:
        say(f"the {runs} runs may write up to {readable_size(needed)} in all; {readable_size(free)} are free")
