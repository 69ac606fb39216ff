"""What a person at a terminal sees while a run goes on: one bar a long job, one line a finished stage.

Everything goes to standard error; a terminal gets moving bars, a log file a line every few seconds.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator

Advance = Callable[[int], None]
"""Sets how much of the job is done."""


@contextlib.contextmanager
def progress_bar(label: str, total: int, unit: str) -> Iterator[Advance]:
    """A bar for one long job; call what it yields with the amount done so far."""
    from tqdm import tqdm

    live = sys.stderr.isatty()
    with tqdm(total=total, desc=label, unit=f" {unit}", leave=live, mininterval=0.2 if live else 10, ncols=100) as bar:

        def advance(done: int) -> None:
            bar.update(done - bar.n)

        yield advance


def say(message: str) -> None:
    """One line for the person at the terminal, above any bar."""
    from tqdm import tqdm

    tqdm.write(message, file=sys.stderr)
