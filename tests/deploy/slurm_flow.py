"""The flow of a SLURM job under test: `python -m flows` as it is, but for the work, which is to square numbers.

In: the command line, and the file that TPO_TOLD names. Out: a line a number that an actor has squared there, its node
first, until SIGTERM comes.
"""

import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import flows.cli.main as command
from flows import recipes as start
from flows.cli.stopping import stop_in_order
from tests.faults.cluster_driver import Squarer, orders
from tpo.config.run import RunConfig
from tpo.engines.cluster.crew import Crew
from tpo.engines.cluster.placement import Role
from tpo.engines.cluster.processes import start_ray
from tpo.report.summary import Summary


def square(_recipe: start.Recipe, config: RunConfig, iterations: int) -> Summary:
    """Squares numbers on two actors, a CPU each."""
    start_ray(config.cluster)
    crew = Crew(Role("squarer", Squarer, (), cpus=1, gpus=0, environment={}), 2)
    numbers: Iterator[int] = itertools.count()
    with Path(os.environ["TPO_TOLD"]).open("w") as told:
        for index, (value, node) in crew.work(numbers, orders()):
            print(node, index, value, iterations, file=told, flush=True)
    raise AssertionError("the numbers have ended")


if __name__ == "__main__":
    vars(start).update(check_before_work=lambda *_: None)  # it would look at a model for ten seconds; none is used
    vars(command).update(_run=square)
    stop_in_order()
    sys.exit(command.main())
