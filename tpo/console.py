"""What a person at a terminal sees while a run goes on: one bar a long job, one line a finished stage.

Everything goes to standard error. A terminal gets moving bars; a log file gets a line every ten seconds instead.
"""

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator

Advance = Callable[[int], None]
"""Sets how much of the job is done."""

Onlooker = Callable[[str, int, str], Advance]
"""Is told of a job, its size and its unit as it begins, and gives what to call with the amount done so far."""

LOGGER = "tpo"
"""Logger of the lines; Prefect sends them to its server and shows them with the run."""
logging.getLogger(LOGGER).setLevel(logging.INFO)
_SECONDS_BETWEEN_LINES = 10
_onlookers: list[Onlooker] = []


def look_on(onlooker: Onlooker) -> None:
    """Has somebody told of every bar from now on, once however often this is called."""
    if onlooker not in _onlookers:
        _onlookers.append(onlooker)


@contextlib.contextmanager
def progress_bar(label: str, total: int, unit: str) -> Iterator[Advance]:
    """A bar for one long job; call what it yields with the amount done so far."""
    with _own_bar(label, total, unit) as own:
        told = [own, *(onlooker(label, total, unit) for onlooker in _onlookers)]

        def advance(done: int) -> None:
            for tell in told:
                tell(done)

        yield advance


@contextlib.contextmanager
def _own_bar(label: str, total: int, unit: str) -> Iterator[Advance]:
    if not sys.stderr.isatty():
        yield _line_writer(label, total, unit)
        return
    from tqdm import tqdm

    with tqdm(total=total, desc=label, unit=f" {unit}", leave=False, ncols=100) as bar:

        def advance(done: int) -> None:
            bar.update(done - bar.n)

        yield advance


def say(message: str) -> None:
    """One line for the person at the terminal, above any bar, and for whoever listens to the logger `tpo`."""
    logging.getLogger(LOGGER).info(message)
    with contextlib.suppress(OSError):  # a reader that is gone, as after `2>&1 | head`, ends no run
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
            say(f"{label}: {done} of {total} {unit}")

    return advance
