"""Claims about the tests themselves: fakes are passed in, and no test changes one of our modules.

A run's resources are in its context (`tpo.run_context`), a function's are its parameters. A patch of our modules breaks
when a name moves, and affects everything else in that process. Environment variables, the current folder and attributes
of other libraries may be patched, since they are the borders of our code.
"""

import ast
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
OURS = re.compile(r"(deploy|flows|judges|prompts|tasks|tpo)(\.|$)")
PATCHES = {"delattr", "delitem", "dict", "multiple", "object", "patch", "setattr", "setitem"}
"""Functions of `monkeypatch`, `mock.patch` and Python that change their first argument, or what it names."""
CHANGES = {"__delitem__", "__setitem__", "append", "clear", "extend", "pop", "remove", "setdefault", "update"}
"""Methods that change the object that they belong to."""
ALLOWED: dict[str, str] = {}
"""Allowed patches, as `file: target`, each with its reason."""


def patches(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The line and the target of each change to one of our modules, including in scripts in strings."""
    names = _names_of_ours(tree)
    for node in ast.walk(tree):
        for changed in _changed(node):
            if (target := _path(changed, names)) is not None and OURS.match(target):
                yield changed.lineno, target
        if (script := _script(node)) is not None:
            yield from ((node.lineno + line, target) for line, target in patches(script))  # type: ignore[attr-defined]


def _names_of_ours(tree: ast.AST) -> dict[str, str]:
    """What names refer to: imports, and modules under another name, as in `for module in (tpo.x, tpo.y)` and `values =
    vars(tpo.x)`."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                whole = alias.name if alias.asname else alias.name.partition(".")[0]
                names[alias.asname or whole] = whole
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in ast.walk(tree):
        match node:
            case ast.For(target=ast.Name(id=name), iter=ast.Tuple(elts=values) | ast.List(elts=values)):
                pass
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Call() as value):
                values = [value]
            case _:
                continue
        for path in filter(None, [_path(value, names) for value in values]):
            if OURS.match(path):
                names[name] = path
    return names


def _changed(node: ast.AST) -> Iterator[ast.expr]:
    """The expressions whose value a node changes."""
    match node:
        case ast.Assign(targets=targets) | ast.Delete(targets=targets):
            yield from map(_owner, targets)
        case ast.AugAssign(target=target) | ast.AnnAssign(target=target):
            yield _owner(target)
        case ast.Call(func=ast.Attribute(attr=name) | ast.Name(id=name), args=[first, *_]) if name in PATCHES:
            yield first
    match node:
        case ast.Call(func=ast.Attribute(attr=name, value=owner)) if name in CHANGES:
            yield owner


def _owner(target: ast.expr) -> ast.expr:
    """The object whose attribute or item is assigned; a plain name belongs to no other module."""
    return target.value if isinstance(target, ast.Attribute | ast.Subscript) else ast.Constant(None, lineno=0)


def _path(node: ast.expr, names: dict[str, str]) -> str | None:
    """The dotted path that an expression refers to, if it is a module's: by name, in a string, or by `vars`."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.Name(id=name):
            return names.get(name)
        case ast.Attribute(value=value, attr=attribute):
            return None if (path := _path(value, names)) is None else f"{path}.{attribute}"
        case ast.Subscript(value=value):
            return _path(value, names)
        case ast.Call(func=ast.Name(id="vars"), args=[module]):
            return _path(module, names)
        case ast.Call(func=ast.Attribute(attr="import_module"), args=[ast.Constant(value=str(text))]):
            return text
    return None


def _script(node: ast.AST) -> ast.AST | None:
    """The program in a string, for a subprocess."""
    if isinstance(node, ast.JoinedStr):
        parts = [str(part.value) if isinstance(part, ast.Constant) else "0" for part in node.values]
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        parts = [node.value]
    else:
        return None
    text = textwrap.dedent("".join(parts))
    if "import " not in text:
        return None
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError):
        return None


def test_no_test_patches_a_module_of_ours():
    found = {
        f"{path.relative_to(TESTS).as_posix()}: {target}": f"{path.relative_to(TESTS)}:{line} changes {target}"
        for path in sorted({*TESTS.rglob("*.py")} - {Path(__file__)})  # its own patches are planted
        for line, target in patches(ast.parse(path.read_text(encoding="utf-8")))
    }
    violations = [text for place, text in found.items() if place not in ALLOWED]
    assert not violations, "\n".join(
        [*violations, "Hand it in: by the run's context (tpo.run_context), or by a parameter."]
    )
    assert ALLOWED.keys() <= found.keys(), "an exception that is no longer needed"


PLANTED = {
    "an attribute, by its module": "from tpo.storage import journal\nmonkeypatch.setattr(journal, 'SYNC_SECONDS', 0)",
    "an attribute, by its path": "monkeypatch.setattr('tpo.storage.store.time', clock)",
    "mock.patch": "mock.patch('tpo.storage.store.time')",
    "mock.patch.object": "import tpo.storage.store as store\nmock.patch.object(store, 'time')",
    "mock.patch.dict": "from tpo.records import RECORDS\nmock.patch.dict(RECORDS, {})",
    "an item": "from tpo.records import RECORDS\nmonkeypatch.setitem(RECORDS, 'Prompt', Other)",
    "an assignment": "from flows.cli import stopping\nstopping.GRACE_SECONDS = 1.0",
    "an assignment by the whole path": "import flows.cli.stopping\nflows.cli.stopping.GRACE_SECONDS = 1.0",
    "an assignment to a class": "from tpo.storage.store import Stage\nStage.begin = lambda self: []",
    "an item of vars": "import tasks.sample\nvars(tasks.sample)['sampler_pool'] = pool",
    "an update of vars": "from flows import recipes\nvars(recipes).update(check=None)",
    "one of several modules": "import tasks.sample as a\nfor module in (a, b):\n    vars(module)['pool'] = pool",
    "vars by another name": "import flows.compare\nflow = vars(flows.compare)\nflow.update(judge=None)",
    "a method that changes it": "from tpo.engines.inference import chat_client\nchat_client._FORMS.clear()",
    "setattr": "from tasks import sample\nsetattr(sample, 'draw', None)",
    "a deletion": "from tasks import sample\ndel sample.draw",
    "a script in a string": 'RUN = """\nfrom flows.cli import stopping\nstopping.GRACE_SECONDS = 1.0\n"""',
    "a script in an f-string": 'RUN = f"""\nfrom flows.cli import stopping\nstopping.GRACE_SECONDS = {seconds}\n"""',
}
BORDERS = [
    "monkeypatch.setenv('TPO_RUN_MARK', '1')",
    "import time\nmonkeypatch.setattr(time, 'time', lambda: 0.0)",
    "monkeypatch.setattr('os.cpu_count', lambda: 32)",
    "from prefect import Task\nmock.patch.object(Task, '__call__', call)",
    "from tpo.config.run import RunConfig\nconfig = RunConfig()\nconfig.found = 1\nconfig.model_copy(update={})",
]


@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_patch_is_found(planted: str):
    assert list(patches(ast.parse(PLANTED[planted])))


@pytest.mark.parametrize("border", BORDERS)
def test_the_borders_of_our_code_may_be_patched(border: str):
    assert not list(patches(ast.parse(border)))
