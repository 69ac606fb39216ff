"""A finished model, from a run or from elsewhere, measured on benchmarks; nothing is trained.

Its outputs, judgments and results are in their own run folder, as those of `iterate` are, so that the same call
resumes an evaluation that was stopped, and adds benchmarks to it.
"""

from prefect import flow

from flows.benchmarks import ask, open_benchmarks
from tasks.benchmark_numbers import measure_benchmarks
from tasks.handles import seed_model
from tpo.config.run import RunConfig
from tpo.report.benchmarks import BENCHMARKS, BENCHMARKS_PAGE, Benchmarks
from tpo.report.benchmarks_page import render_benchmarks
from tpo.storage.current import keep_config, mark_finished
from tpo.storage.disk import write_atomically
from tpo.storage.ledger import read_ledger, spending
from tpo.storage.lock import only_writer
from tpo.storage.mirror import writing
from tpo.storage.store import remaking_damaged


@flow(name="evaluate", flow_run_name="{config.name}")
def evaluate(config: RunConfig, model: str) -> Benchmarks:
    """Measures M_0 of a config on its benchmarks, as `model` in the tables, as the only writer of its folder."""
    with only_writer(config.root), writing(config):
        keep_config(config)
        found = remaking_damaged(lambda: _measured(config, model))
        page = render_benchmarks(
            found, model=model, config=config.model_dump(mode="json"), spent=spending(read_ledger(config.root))
        )
        write_atomically(config.root / BENCHMARKS_PAGE, page.encode())
        mark_finished(config, BENCHMARKS, BENCHMARKS_PAGE)
        return found


def _measured(config: RunConfig, model: str) -> Benchmarks:
    benchmarks = open_benchmarks(config)
    return measure_benchmarks(config, ask(config, benchmarks, seed_model(config), 0, name=model))
