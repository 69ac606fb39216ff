"""Template files of prompts: the shipped ones and those of a user, read, and compiled to be rendered."""

from functools import lru_cache
from pathlib import Path

from jinja2 import StrictUndefined, Template, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tpo.errors import InputError

TEMPLATES = Path(__file__).parent / "templates"
_ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False)


def shipped_template(name: str) -> str:
    """The source of a shipped template, by its file's name without `.jinja`."""
    return (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


def read_template(path: Path, kind: str) -> str:
    """The source of a user's template; raises `InputError`, which names its `kind`, if the file can't be read."""
    if path.exists() and not path.is_file():
        raise InputError(f"{kind} template {path} cannot be read: it isn't a file")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{kind} template {path} cannot be read: {error}") from error


@lru_cache(maxsize=64)
def compiled(source: str) -> Template:
    """A template, ready to render: to compile one takes a hundred times as long as to render it."""
    return _ENVIRONMENT.from_string(source)


def parsed(source: str) -> nodes.Template:
    """The syntax tree of a template."""
    return _ENVIRONMENT.parse(source)
