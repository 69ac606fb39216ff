"""The errors that a user can do something about; everything else is a bug and keeps its traceback."""


class TpoError(Exception):
    """Base of the errors whose message says what was found, what was expected and what to do next."""


class InputError(TpoError, ValueError):
    """A config, file or argument is wrong; raised before anything expensive starts."""


class StageError(TpoError, RuntimeError):
    """A stage cannot go on with what earlier stages left it, for example 0 pairs."""


class StoreError(TpoError, RuntimeError):
    """The run folder does not hold what its manifests say."""
