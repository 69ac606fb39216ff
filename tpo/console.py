"""Progress at the terminal: one bar per long job, one line per finished stage, all on standard error.

A terminal gets moving bars; a log file gets a line every ten seconds instead.
"""

import contextlib
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator

from tpo.run_context import run_context

Advance = Callable[[int], None]
"""Sets the amount done."""

Onlooker = Callable[[str, int, str], Advance]
"""A progress listener: receives a job, its size and its unit at the start, and returns a function that takes the amount
done."""

LOGGER = "tpo"
"""Logger of the lines; Prefect sends them to its server and shows them with the run."""
logging.getLogger(LOGGER).setLevel(logging.INFO)
_SECONDS_BETWEEN_LINES = 10
_MAX_WIDTH = 120
"""Maximum width of a bar, in characters."""


@contextlib.contextmanager
def progress_bar(label: str, total: int, unit: str) -> Iterator[Advance]:
    """A progress bar for a long job, with its speed and errors next to it; yields a function that takes the amount done
    so far, and notifies the run's listeners."""
    metrics = run_context().metrics
    with metrics.counting_down(total), _own_bar(label, total, unit) as own:
        listeners = [own, *(onlooker(label, total, unit) for onlooker in run_context().onlookers)]

        def advance(done: int) -> None:
            metrics.remaining(total - done)
            for tell in listeners:
                tell(done)

        yield advance


@contextlib.contextmanager
def _own_bar(label: str, total: int, unit: str) -> Iterator[Advance]:
    if not sys.stderr.isatty():
        yield _line_writer(label, total, unit)
        return
    from tqdm import tqdm

    width = min(_MAX_WIDTH, shutil.get_terminal_size((100, 24)).columns)
    with tqdm(total=total, desc=label, unit=f" {unit}", leave=False, ncols=width) as bar:

        def advance(done: int) -> None:
            bar.set_postfix_str(run_context().metrics.line(), refresh=False)
            bar.update(done - bar.n)

        yield advance


def say(message: str) -> None:
    """Prints one line above any bar, and logs it to `tpo`."""
    logging.getLogger(LOGGER).info(message)
    with contextlib.suppress(OSError):  # A closed pipe, as after `2>&1 | head`, must not end the run.
        if sys.stderr.isatty():
            from tqdm import tqdm

            tqdm.write(message, file=sys.stderr)
        else:
            print(message, file=sys.stderr, flush=True)


def _line_writer(label: str, total: int, unit: str) -> Advance:
    written = time.monotonic()

    def advance(done: int) -> None:
        nonlocal written
        if time.monotonic() - written >= _SECONDS_BETWEEN_LINES:
            written = time.monotonic()
            state = run_context().metrics.line()
            say(f"{label}: {done} of {total} {unit}{state and f' ({state})'}")

    return advance
