"""The errors that a user can do something about; everything else is a bug and keeps its traceback."""

from pathlib import Path

MAX_QUOTED_LENGTH = 120
"""Characters of a user's text, or of a library's, that a message quotes."""


def shortened(text: str, most: int = MAX_QUOTED_LENGTH) -> str:
    """A text for a message: on one line, and without its middle if it is long."""
    line = " ".join(text.split())
    half = most // 2
    return line if len(line) <= most else f"{line[:half]} … {line[-half:]} ({len(text)} characters)"


class TpoError(Exception):
    """Base of the errors whose message says what was found, what was expected and what to do next."""


class InputError(TpoError, ValueError):
    """A config, file or argument is wrong; raised before anything expensive starts."""


class StageError(TpoError, RuntimeError):
    """A stage cannot go on with what earlier stages left it, for example 0 pairs."""


class BudgetError(TpoError, RuntimeError):
    """The run has spent what it may."""


class ServerError(TpoError, RuntimeError):
    """Prefect's server, which shows a run but does not make it, is out of reach."""


class StoreError(TpoError, RuntimeError):
    """The run folder cannot be read or written, or does not hold what its manifests say."""


class DamagedError(StoreError):
    """A stage does not hold what its manifest says; set aside, it can be made again."""

    def __init__(self, folder: Path, what: str) -> None:
        super().__init__(f"{what}: move {folder} away and run again to make it anew")
        self.folder = folder
        self.what = what

    def __reduce__(self) -> tuple[type, tuple[Path, str]]:
        return type(self), (self.folder, self.what)
