"""A trial of chat templates: inspected, then rendered once in a subprocess.

transformers renders templates in Jinja's sandbox, which keeps them from running code, but not from running forever or
producing endless text. So each is rendered for a few short chats, with limits on time, memory and output, in a process
that can be killed.

A template could recognize this trial and only misbehave in a run. Even then it can't run code, but a run that it stalls
must be stopped manually.
"""

import json
import sys
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment

TRIAL_SECONDS = 5
"""CPU time limit for all templates of a folder, in seconds; normal ones take milliseconds."""
TRIAL_BYTES = 1 << 30
"""Memory limit of the trial."""
MAX_CHARS = 1 << 20
"""Maximum length of a chat rendered from a few words, in characters."""
CHATS = (("user",), ("system", "user"), ("user", "assistant"), ("user", "assistant", "user"))
"""The roles of the trial's chats."""


@lru_cache(maxsize=64)
def template_fault(templates: tuple[str, ...], *, cpu_seconds: int = TRIAL_SECONDS) -> str | None:
    """The fault of one of these templates, to follow "a chat template"; None if there is none."""
    # Imported here, since the subprocess runs this file without our other code.
    from tpo.sandbox import Sandbox, SandboxError

    try:
        with Sandbox(Path(__file__), memory_bytes=TRIAL_BYTES, cpu_seconds=cpu_seconds) as trial:
            fault: str | None = json.loads(trial.ask(json.dumps(templates), wall_seconds=6 * cpu_seconds))
    except SandboxError:
        return f"does not terminate within {cpu_seconds} s and {TRIAL_BYTES >> 20} MiB"
    return fault


def _trial() -> None:
    """The subprocess: reads templates, prints the first fault."""
    faults = (_fault(template) for template in json.loads(sys.stdin.readline()))
    print(json.dumps(next((fault for fault in faults if fault), None)))


def _fault(template: str) -> str | None:
    from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError

    environment = _environment()
    try:
        if reached := _python_names(environment, template):
            return f"reaches into Python ({reached})"
        compiled = environment.from_string(template)
        for roles in CHATS:
            try:
                words = compiled.render(_given(roles))
            except (MemoryError, OverflowError, RecursionError, SecurityError, SyntaxError):
                raise
            except Exception:  # noqa: BLE001 - it may want other roles, or tools; that shows when it is used
                continue
            if len(words) > MAX_CHARS:
                return f"renders {len(words)} characters for a chat of a few words"
    except TemplateSyntaxError as error:
        return f"does not parse, {error}"
    except (MemoryError, OverflowError, RecursionError, SyntaxError, TemplateError) as error:
        return f"does more than render a chat, {error!r}"[:500]
    return None


def _given(roles: tuple[str, ...]) -> dict[str, Any]:
    """The variables that transformers passes to a template."""
    return {
        "messages": [{"role": role, "content": "Some words."} for role in roles],
        "tools": None,
        "documents": None,
        "add_generation_prompt": roles[-1] == "user",
        **{name: f"<{name}>" for name in ("bos_token", "eos_token", "pad_token", "unk_token")},
    }


def _python_names(environment: "Environment", template: str) -> str | None:
    """The first name with two underscores that a template looks up, as escapes from sandboxes do."""
    from jinja2 import nodes

    for node in environment.parse(template).find_all((nodes.Getattr, nodes.Const, nodes.Name)):
        name = getattr(node, {nodes.Getattr: "attr", nodes.Const: "value", nodes.Name: "name"}[type(node)])
        if isinstance(name, str) and name.startswith("__"):
            return name
    return None


def _environment() -> "Environment":
    """Jinja as transformers sets it up."""
    from datetime import datetime

    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012 - Jinja's own form

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    def refuse(message: object) -> None:
        raise TemplateError(str(message))

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = lambda value, indent=None, **_: json.dumps(value, ensure_ascii=False, indent=indent)
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().astimezone().strftime(form)
    return environment


if __name__ == "__main__":
    _trial()
