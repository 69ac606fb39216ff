"""The flow of a SLURM job under test: `python -m flows` with its own work, which is to square numbers.

Writes a line per number that an actor has squared, its node first, to the file that TPO_OUTPUT names, until SIGTERM
comes.
"""

import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from flows.cli.main import main
from flows.cli.stopping import stop_in_order
from flows.preflight import preflight
from flows.recipes import RECIPES, Recipe
from tests.faults.cluster_driver import Squarer, orders
from tpo.config.run import RunConfig
from tpo.engines.cluster.actor_pool import ActorPool
from tpo.engines.cluster.placement import Role
from tpo.engines.cluster.processes import start_ray
from tpo.engines.cluster.room import Room
from tpo.report.summary import Summary


class Squaring(Recipe):
    """A recipe without the check before work, which isn't needed here and would look at a model for ten seconds."""

    def ready(self, config: RunConfig, iterations: int) -> None:
        """Only checks files."""
        preflight(config)
        self.check(config)


def square(config: RunConfig, iterations: int) -> Summary:
    """Squares numbers on two actors with a CPU each."""
    start_ray(config.cluster)
    pool = ActorPool(Role("squarer", Squarer, (), cpus=1, gpus=0, environment={}), 2, Room())
    numbers: Iterator[int] = itertools.count()
    with Path(os.environ["TPO_OUTPUT"]).open("w") as output:
        for index, (value, node) in pool.work(numbers, orders()):
            print(node, index, value, iterations, file=output, flush=True)
    raise AssertionError("the numbers have ended")


if __name__ == "__main__":
    recipe = Squaring(**{**vars(RECIPES["iterate"]), "flow": "tests.deploy.slurm_flow:square"})
    stop_in_order()
    sys.exit(main(recipes=[recipe]))
