"""Errors that a user can fix; everything else is a bug and keeps its traceback."""

from pathlib import Path

MAX_QUOTED_LENGTH = 120
"""Maximum number of characters that a message quotes from a user or a library."""


def shortened(text: str, most: int = MAX_QUOTED_LENGTH) -> str:
    """A text for a message: on one line, with its middle cut out if it is long."""
    line = " ".join(text.split())
    half = most // 2
    return line if len(line) <= most else f"{line[:half]} … {line[-half:]} ({len(text)} characters)"


class TpoError(Exception):
    """Base of the errors whose message says what was found, what was expected and what to do next."""


class InputError(TpoError, ValueError):
    """A config, file or argument is wrong. Raised before anything expensive starts."""


class StageError(TpoError, RuntimeError):
    """A stage can't continue with what earlier stages produced, for example 0 pairs."""


class GateError(TpoError, RuntimeError):
    """The gate didn't promote the last model, so that the run can't continue from it."""

    def __init__(self, root: Path, what: str) -> None:
        super().__init__(what)
        self.root = root
        self.what = what

    def __reduce__(self) -> tuple[type, tuple[Path, str]]:
        return type(self), (self.root, self.what)


class BudgetError(TpoError, RuntimeError):
    """The run has spent its budget."""


class ServerError(TpoError, RuntimeError):
    """Prefect's server, which shows a run but isn't needed to compute it, can't be reached."""


class StoreError(TpoError, RuntimeError):
    """The run folder can't be read or written, or doesn't match its manifests."""


class DamagedError(StoreError):
    """A stage's files don't match its manifest; the stage can be moved aside and redone."""

    def __init__(self, folder: Path, what: str) -> None:
        super().__init__(f"{what}: move {folder} away and rerun to redo it")
        self.folder = folder
        self.what = what

    def __reduce__(self) -> tuple[type, tuple[Path, str]]:
        return type(self), (self.folder, self.what)
