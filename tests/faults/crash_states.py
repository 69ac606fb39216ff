"""States that a crash can leave on a disk: a model of a file system that loses what wasn't synced.

A scenario is a command that changes a folder through `tpo.storage.disk`. The explorer generates the states that a crash
during the command, or during its second run after a crash, may leave; the real code reads each one and resumes from it.

The model is POSIX at its worst, within what ext4, XFS and NFS promise:

* Syncing a file keeps its content; syncing a folder keeps its names.
* Any other change of a folder's names (a new file, folder or link, a rename, a removal) is kept or lost separately.
  A rename is one change: its target shows the old or the new, and its source goes with it. A folder whose name is lost
  takes its content along; a removed tree may be half there.
* Content that wasn't synced is cut anywhere, at worst to nothing, or has its full length with zeros in it, even if its
  name was kept: a renamed file that was never synced may be empty.

A killed process on a machine that keeps running leaves the state in which nothing is lost, which is among these.
"""

import contextlib
import hashlib
import itertools
import math
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

State = Mapping[str, bytes | None]
"""Content by path in the folder; None for a folder."""

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_TWO_PATHS = ("os.rename", "os.link", "os.symlink")
_ONE_PATH = ("os.mkdir", "os.remove", "os.rmdir", "os.truncate")
_ANNOUNCED_AS = {
    "open": ("write", "append"),
    "os.rename": ("rename",),
    "os.link": ("link",),
    "os.mkdir": ("mkdir",),
    "os.remove": ("remove",),
    "os.rmdir": ("remove",),
}
_ERRORS = (AssertionError, ArithmeticError, LookupError, OSError, RuntimeError, TypeError, ValueError)
"""Errors that a failed read may raise."""


@dataclass(frozen=True)
class Operation:
    """One change, as announced by `tpo.storage.disk`."""

    kind: str
    """`write`, `append`, `sync`, `rename`, `link`, `mkdir` or `remove`."""
    path: str
    """Path in the folder; `.` is the folder itself."""
    target: str = ""
    """New path of a renamed or linked file."""
    data: bytes = b""
    """The bytes written."""


class Recording:
    """What was done below a folder: the operations announced, and the changes reported by Python itself.

    Temporary files are named after their process, here `process`, so that a second run doesn't overwrite the first
    one's.
    """

    def __init__(self, root: Path, process: int) -> None:
        self.operations: list[Operation] = []
        self.unannounced: list[tuple[str, str]] = []
        """Event and path of every change that wasn't announced as an operation just before."""
        self._root = str(root)
        self._process = process

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Handles one audit event."""
        if event.startswith("tpo."):
            path = self._below(arguments[0])
            if path is not None:
                self.operations.append(self._operation(event[4:], path, arguments[1:]))
        elif _changes_something(event, arguments):
            paths = [self._below(path) for path in _paths(event, arguments)]
            if paths[-1] is not None and not self._announced(event, [path or "" for path in paths]):
                self.unannounced.append((event, paths[-1]))
                if event == "open":  # the file exists now in any case
                    self.operations.append(Operation("append", paths[-1]))
                elif event == "os.link" and paths[0] is not None:
                    self.operations.append(Operation("link", paths[0], target=paths[-1]))

    def _operation(self, kind: str, path: str, rest: tuple[Any, ...]) -> Operation:
        if kind in ("rename", "link"):
            return Operation(kind, path, target=self._below(rest[0]) or "")
        return Operation(kind, path, data=rest[0] if rest else b"")

    def _announced(self, event: str, paths: Sequence[str]) -> bool:
        if not self.operations or self.operations[-1].kind not in _ANNOUNCED_AS.get(event, ()):
            return False
        last = self.operations[-1]
        if last.kind == "remove":
            return paths[0] == last.path or paths[0].startswith(f"{last.path}/")
        return list(paths) == [last.path, *([last.target] if last.target else [])]

    def _below(self, path: str) -> str | None:
        if path != self._root and not path.startswith(f"{self._root}/"):
            return None
        return (path[len(self._root) + 1 :] or ".").replace(f".{os.getpid()}.tmp", f".{self._process}.tmp")


_listening: Recording | None = None


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if _listening is not None:
        _listening.hear(event, arguments)


_hook_is_set = False  # an audit hook can't be removed


@contextlib.contextmanager
def recording(root: Path, *, process: int = 1) -> Iterator[Recording]:
    """Records what this process does in `root`, as if its id were `process`."""
    global _listening, _hook_is_set  # noqa: PLW0603 -- one audit hook per process
    if not _hook_is_set:
        sys.addaudithook(_hear)
        _hook_is_set = True
    _listening = Recording(root, process)
    try:
        yield _listening
    finally:
        _listening = None


def _changes_something(event: str, arguments: tuple[Any, ...]) -> bool:
    if event == "open":
        path, mode, flags = arguments
        return not isinstance(path, int) and (bool(set(mode or "") & set("wxa+")) or bool(flags & _WRITES))
    return event in _TWO_PATHS or event in _ONE_PATH


def _paths(event: str, arguments: tuple[Any, ...]) -> list[str]:
    paths = [os.fsdecode(path) for path in arguments[: 2 if event in _TWO_PATHS else 1]]
    folder = arguments[-1]
    if event in _ONE_PATH and event != "os.truncate" and folder != -1:  # as `shutil.rmtree` does
        return [f"{Path(f'/proc/self/fd/{folder}').readlink()}/{paths[0]}"]
    return paths


@dataclass(eq=False)
class _File:
    versions: list[bytes]
    """The synced content, then every content since."""

    def contents(self) -> list[bytes]:
        """Contents that it may have after a crash: the first one synced, the last one complete."""
        last = self.versions[-1]
        found = dict.fromkeys([self.versions[0], *_torn(self.versions[0], last)])
        for before, after in itertools.pairwise(self.versions):
            found |= dict.fromkeys(_torn(before, after))
            if last.startswith(after) and after.startswith(before):
                found[last[: len(before)] + bytes(len(after) - len(before)) + last[len(after) :]] = None
        found.pop(last, None)
        return [*found, last]


def _torn(before: bytes, after: bytes) -> Iterator[bytes]:
    kept = len(before) if after.startswith(before) else 0
    new = len(after) - kept
    for cut in (0, 1, new // 4, new // 2, new - 1, new):
        head = after[: kept + max(cut, 0)]
        yield head
        yield head + bytes(len(after) - len(head))
        yield head + before[len(head) :]


@dataclass(eq=False)
class _Folder:
    names: dict[str, "_File | _Folder"] = field(default_factory=dict)
    """The synced state."""
    changes: list[Mapping[str, "_File | _Folder | None"]] = field(default_factory=list)
    """Changes since then; a crash may lose any of them, but none in part."""

    def now(self, kept: int = -1) -> dict[str, "_File | _Folder"]:
        """The names after only the changes whose bits are set in `kept`."""
        names: dict[str, _File | _Folder | None] = dict(self.names)
        for i, change in enumerate(self.changes):
            if kept >> i & 1:
                names |= change
        return {name: node for name, node in names.items() if node is not None}


class Disk:
    """A folder as programs see it, and the part that a crash can't lose; at first everything."""

    def __init__(self, state: State) -> None:
        self._root = _Folder()
        for path in sorted(state):
            content = state[path]
            self._parent(path).names[Path(path).name] = _Folder() if content is None else _File([content])

    def apply(self, operation: Operation) -> None:
        """Performs an announced operation; existing files must allow it."""
        path, name = operation.path, Path(operation.path).name
        if operation.kind == "sync":
            _sync(self._node(path))
        elif operation.kind == "remove":
            _remove(self._parent(path), name)
        elif operation.kind == "mkdir":
            self._parent(path).changes.append({name: _Folder()})
        elif operation.kind == "link":
            self._parent(operation.target).changes.append({Path(operation.target).name: self._node(path)})
        elif operation.kind == "rename":
            if self._parent(operation.target) is not self._parent(path):
                raise ValueError(f"{path} moves to another folder: this model knows renames within one folder")
            self._parent(path).changes.append({name: None, Path(operation.target).name: self._node(path)})
        else:
            file = self._parent(path).now().get(name)
            if not isinstance(file, _File):
                file = _File([b""])
                self._parent(path).changes.append({name: file})
            before = file.versions[-1] if operation.kind == "append" else b""
            file.versions.append(before + operation.data)

    def now(self) -> State:
        """The state that programs see."""
        return dict(_listed(self._root, {}))

    def after_crash(self, draw: random.Random, limit: int) -> Iterator[State]:
        """Every state that a crash may leave now; if there are more than `limit`, the two extremes and `limit` random
        ones."""
        nodes = list(_unsettled(self._root))
        choices: list[Sequence[int | bytes]] = [
            range(2 ** len(node.changes)) if isinstance(node, _Folder) else tuple(node.contents()) for node in nodes
        ]
        picks: Iterable[Sequence[int | bytes]] = itertools.product(*choices)
        if math.prod(map(len, choices)) > limit:
            extremes: list[list[int | bytes]] = [[choice[end] for choice in choices] for end in (0, -1)]
            picks = itertools.chain(extremes, ([draw.choice(choice) for choice in choices] for _ in range(limit)))
        for pick in picks:
            yield dict(_listed(self._root, {id(node): chosen for node, chosen in zip(nodes, pick, strict=True)}))

    def _node(self, path: str) -> _File | _Folder:
        node: _File | _Folder = self._root
        for part in Path(path).parts:
            if not isinstance(node, _Folder):
                raise NotADirectoryError(path)
            node = node.now()[part]
        return node

    def _parent(self, path: str) -> _Folder:
        parent = self._node(str(Path(path).parent))
        if not isinstance(parent, _Folder):
            raise NotADirectoryError(path)
        return parent


def _sync(node: _File | _Folder) -> None:
    if isinstance(node, _Folder):
        node.names, node.changes = node.now(), []
    else:
        node.versions = node.versions[-1:]


def _remove(folder: _Folder, name: str) -> None:
    node = folder.now().get(name)
    if isinstance(node, _Folder):
        for inner in node.now():
            _remove(node, inner)
    if node is not None:
        folder.changes.append({name: None})


def _unsettled(folder: _Folder) -> Iterator[_File | _Folder]:
    """The files and folders that a crash could leave in more than one state, each once."""
    seen: dict[int, _File | _Folder] = {}
    todo: list[_File | _Folder] = [folder]
    while todo:
        node = todo.pop()
        if id(node) not in seen:
            seen[id(node)] = node
            if isinstance(node, _Folder):
                for change in (node.names, *node.changes):
                    todo += [inner for inner in change.values() if inner is not None]
    return (node for node in seen.values() if (len(node.versions) > 1 if isinstance(node, _File) else node.changes))


def _listed(folder: _Folder, chosen: Mapping[int, int | bytes], above: str = "") -> Iterator[tuple[str, bytes | None]]:
    kept = chosen.get(id(folder), -1)
    for name, node in sorted(folder.now(kept if isinstance(kept, int) else -1).items()):
        if isinstance(node, _Folder):
            yield above + name, None
            yield from _listed(node, chosen, f"{above}{name}/")
        else:
            content = chosen.get(id(node), node.versions[-1])
            yield above + name, content if isinstance(content, bytes) else b""


def read_state(root: Path) -> State:
    """The current content of a folder."""
    return {
        path.relative_to(root).as_posix(): None if path.is_dir() else path.read_bytes()
        for path in sorted(root.rglob("*"))
    }


@contextlib.contextmanager
def standing(state: State = {}) -> Iterator[Path]:  # noqa: B006 -- never written to
    """A folder in that state, in memory if possible, while it is inspected."""
    root = Path(tempfile.mkdtemp(prefix="crash-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    try:
        for path in sorted(state):
            content = state[path]
            if content is None:
                (root / path).mkdir()
            else:
                (root / path).write_bytes(content)
        yield root
    finally:
        shutil.rmtree(root)


@dataclass(frozen=True)
class Scenario:
    """A command, the disk's content before it, and how to read its results."""

    before: Callable[[Path], object]
    """Makes the initial content, which is synced, before the command."""
    command: Callable[[Path], object]
    """The command, also rerun after a crash."""
    read: Callable[[Path], frozenset[str]]
    """Names of what is complete; raises if something is there that shouldn't be."""
    goal: frozenset[str]
    """What `read` returns when the command has ended."""
    kept: frozenset[str] = frozenset()
    """What `read` returns before the command begins, and must always return."""
    promised: Callable[[Sequence[Operation]], frozenset[str]] = lambda done: frozenset()
    """What must also be complete, given the operations before the crash."""
    tidied: str = ""
    """Folder without temporary files once the command has ended."""


@dataclass
class Explored:
    """The results of one scenario."""

    operations: int
    """Number of operations of the uninterrupted command."""
    found: dict[bytes, frozenset[str]] = field(default_factory=dict)
    """The readings, by the SHA-256 of the state: distinct states only."""
    again: int = 0
    """States among them that only a crash during recovery leaves."""
    violations: list[str] = field(default_factory=list)
    """States that were read incorrectly, had less than promised, or couldn't be resumed from."""


@dataclass(frozen=True)
class _Recovery:
    state: State
    found: frozenset[str]
    operations: Sequence[Operation]


class Explorer:
    """Visits the states of one scenario, about `limit` after each operation, in the command's first run and in
    `recoveries` second ones, all drawn by `seed`; stops after `most` violations."""

    def __init__(
        self, scenario: Scenario, *, limit: int = 100, recoveries: int = 60, most: int = 20, seed: int = 0
    ) -> None:
        self._scenario = scenario
        self._limit = limit
        self._recoveries = recoveries
        self._most = most
        self._draw = random.Random(seed)
        self._second: list[_Recovery] = []

    def explore(self, spoil: Callable[[list[Operation]], list[Operation]] = list) -> Explored:
        """Explores everything that a crash may leave; `spoil` changes the operations, to see that a wrong order is
        detected."""
        with standing() as root:
            self._scenario.before(root)
            start = read_state(root)
            with recording(root) as done:
                self._scenario.command(root)
            disk = Disk(start)
            for operation in done.operations:
                disk.apply(operation)
            if disk.now() != read_state(root):
                raise AssertionError("the announced operations aren't those performed: the folder differs")
        explored = Explored(len(done.operations))
        self._crash(explored, start, spoil(done.operations), process=2)
        first = len(explored.found)
        for recovery in self._draw.sample(self._second, min(self._recoveries, len(self._second))):
            self._crash(explored, recovery.state, recovery.operations, process=3, kept=recovery.found)
        explored.again = len(explored.found) - first
        return explored

    def _crash(
        self,
        explored: Explored,
        start: State,
        operations: Sequence[Operation],
        *,
        process: int,
        kept: frozenset[str] = frozenset(),
    ) -> None:
        disk = Disk(start)
        for count in range(len(operations) + 1):
            if count:
                disk.apply(operations[count - 1])
            promised = kept | self._scenario.kept | self._scenario.promised(operations[:count])
            if count == len(operations):
                promised |= self._scenario.goal
            for state in disk.after_crash(self._draw, self._limit):
                if len(explored.violations) >= self._most:
                    return
                key = _digest(state)
                try:
                    if key not in explored.found:
                        explored.found[key] = frozenset()
                        explored.found[key] = self._look(state, process)
                    assert promised <= explored.found[key], f"lost: {sorted(promised - explored.found[key])}"
                except _ERRORS as error:
                    where = operations[count - 1] if count else "nothing"
                    explored.violations.append(f"crash after {count} ({where}): {error!r}\n{_shown(state)}")

    def _look(self, state: State, process: int) -> frozenset[str]:
        with standing(state) as root:
            found = self._scenario.read(root)
            with recording(root, process=process) as done:
                self._scenario.command(root)
            after = self._scenario.read(root)
            assert after >= self._scenario.goal | found, (
                f"after the rerun, {sorted(after)} is complete, expected {sorted(self._scenario.goal | found)}"
            )
            stray = [path.name for path in (root / self._scenario.tidied).glob("**/.*.tmp")]
            assert not (stray and self._scenario.tidied), f"the rerun left {stray} behind"
            if process == 2 and done.operations:
                self._second.append(_Recovery(state, found, done.operations))
        return found


def _digest(state: State) -> bytes:
    digest = hashlib.sha256()
    for path in sorted(state):
        content = state[path]
        digest.update(f"{path}\0{'' if content is None else len(content)}\0".encode())
        digest.update(content or b"")
    return digest.digest()


def _shown(state: State) -> str:
    return "\n".join(f"  {path}: {'folder' if content is None else content[:60]!r}" for path, content in state.items())


def table(explored: Mapping[str, Explored], goals: Mapping[str, frozenset[str]]) -> str:
    """One line per scenario."""
    lines = [f"{'':58}{'operations':>11}{'states':>8}{'complete':>10}{'not there':>11}{'second crash':>14}"]
    totals = [0] * 5
    for name, states in explored.items():
        complete = sum(found >= goals[name] for found in states.found.values())
        numbers = [states.operations, len(states.found), complete, len(states.found) - complete, states.again]
        totals = [total + number for total, number in zip(totals, numbers, strict=True)]
        lines.append(_line(name, numbers))
    return "\n".join([*lines, _line("total", totals)])


def _line(name: str, numbers: Sequence[int]) -> str:
    return f"{name:58}" + "".join(
        f"{number:>{width},}" for number, width in zip(numbers, (11, 8, 10, 11, 14), strict=True)
    )
