"""A thread that does the next stage's work while a stage makes what it needs: judging of samples, sampling of epochs.

Its error ends the working ahead, not the run: the next stage meets it again, or not.
"""

import contextlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator

from tpo.console import say


class _Interrupted(Exception):
    """The stage has failed, or the run was stopped."""


class Follower(threading.Thread, ABC):
    """Follows a stage until it has ended.

    Args:
        doing: What it does and to what, as its thread's name.
        waits: What is said if it fails: what now waits until when.
    """

    def __init__(self, doing: str, waits: str) -> None:
        super().__init__(daemon=True, name=doing)
        self.ended, self.interrupted = threading.Event(), threading.Event()
        self._waits = waits

    @abstractmethod
    def follow(self) -> None:
        """Does what is there, until `ended` is set; calls `check` in between."""
        ...

    def check(self) -> None:
        """Ends the work if the stage was interrupted."""
        if self.interrupted.is_set():
            raise _Interrupted

    def run(self) -> None:
        """Follows, and says what went wrong."""
        try:
            self.follow()
        except _Interrupted:
            pass
        except Exception as error:  # noqa: BLE001 - whatever it is, the next stage meets it again, or not
            say(f"{self._waits} ({type(error).__name__}: {error})")

    @contextlib.contextmanager
    def beside(self) -> Iterator[None]:
        """Follows what is done in this context; on exit, waits for what it is doing, after an error only until it
        checks."""
        self.start()
        try:
            yield
        except BaseException:
            self.interrupted.set()
            raise
        finally:
            self.ended.set()
            self.join()
