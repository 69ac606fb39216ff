"""What `/proc` shows of a process and its descendants: sockets, commands and Ray's token."""

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

HOOK = """
import os, sys

def _local(host):
    host = host.decode() if isinstance(host, bytes) else host
    return host is None or host in ("", "localhost", "::1") or host.startswith(("127.", "::ffff:127."))

def _note(what):
    command = " ".join(sys.orig_argv[:8]).replace("\\n", " ")
    descriptor = os.open(os.environ["CONTACTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, f"{os.getpid()}\\t{what}\\t{command}\\n".encode())
    os.close(descriptor)

def _watch(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        if isinstance(arguments[1], tuple) and not _local(arguments[1][0]):
            _note(f"{event} {arguments[1]}")
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "http.client.connect"):
        host = arguments[1] if event == "http.client.connect" else arguments[0]
        if not _local(host[0] if isinstance(host, tuple) else host):
            _note(f"{event} {host}")

sys.addaudithook(_watch)
_note("started")
"""
"""A `sitecustomize.py` that logs to the file `CONTACTS` each address beyond loopback that a Python process contacts."""


@dataclass(frozen=True, slots=True)
class Socket:
    """A line of `/proc/net/*`; addresses as the kernel writes them."""

    protocol: str
    local: str
    remote: str
    state: str
    inode: str

    def __str__(self) -> str:
        state = {"01": "established", "02": "connecting", "0A": "listening"}.get(self.state, self.state)
        return f"{self.protocol} {_readable(self.local)} to {_readable(self.remote)}, {state}"


@dataclass(slots=True)
class Watch:
    """What was seen of a process and its descendants, including those orphaned since."""

    root: int
    commands: dict[int, str] = field(default_factory=dict)
    """Every command line that a process had, by process id."""
    listening: set[str] = field(default_factory=set)
    """Listening sockets, with their processes."""
    open_to_others: set[str] = field(default_factory=set)
    """Sockets that listen beyond loopback, or are connected beyond it."""
    gcs: str | None = None
    """The address of Ray's control service."""
    token: str | None = None
    """The token that Ray's processes were given."""
    _strangers: set[int] = field(default_factory=set)
    _owners: dict[str, int | None] = field(default_factory=dict)

    def look(self) -> None:
        """Takes one look."""
        self._find_processes()
        found = list(_sockets())
        if any(row.inode not in self._owners for row in found):
            mine = self._inodes()
            for row in found:
                self._owners.setdefault(row.inode, mine.get(row.inode))
        for row in found:
            if (owner := self._owners[row.inode]) is not None:
                name = self.commands[owner].rpartition("\n")[2][:120]
                if row.state == "0A":
                    self.listening.add(f"{name}: {row}")
                if not (_is_loopback(row.local) and (row.state == "0A" or _is_loopback(row.remote))):
                    self.open_to_others.add(f"{name}: {row}")

    def ports(self, name: str) -> list[int]:
        """The TCP ports at which processes of a name listen."""
        rows = (line.partition(": tcp ") for line in self.listening)
        return [int(row.partition(" to ")[0].rpartition(":")[2]) for process, _, row in rows if row and name in process]

    def alive(self) -> list[int]:
        """The processes, without the root, that have not ended."""
        return [process for process in self.commands if process != self.root and _state(process) not in ("", "Z")]

    def _find_processes(self) -> None:
        present = {int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()}
        self._strangers &= present
        for process in sorted(present - self._strangers):
            if process not in self.commands:
                if process != self.root and _parent(process) not in self.commands:
                    self._strangers.add(process)
                    continue
                self.commands[process] = ""
            command = _read(f"/proc/{process}/cmdline").replace("\0", " ").strip()
            if command and command not in self.commands[process]:
                self.commands[process] = f"{self.commands[process]}\n{command}".strip()
                self._look_for_ray(process, command)

    def _look_for_ray(self, process: int, command: str) -> None:
        if "/raylet/raylet " in command:
            self.gcs = command.partition("--gcs-address=")[2].split()[0]
            for variable in _read(f"/proc/{process}/environ").split("\0"):
                if variable.startswith("RAY_AUTH_TOKEN="):
                    self.token = variable.partition("=")[2]

    def _inodes(self) -> dict[str, int]:
        found = {}
        for process in self.commands:
            try:
                for descriptor in Path(f"/proc/{process}/fd").iterdir():
                    target = str(descriptor.readlink())
                    if target.startswith("socket:["):
                        found[target[8:-1]] = process
            except OSError:  # it has ended
                continue
        return found


def _sockets() -> Iterator[Socket]:
    """TCP sockets that listen or are connected beyond loopback, and all UDP sockets."""
    for protocol in ("tcp", "tcp6", "udp", "udp6"):
        for line in _read(f"/proc/net/{protocol}").splitlines()[1:]:
            _, local, remote, state, *_, inode = line.split(maxsplit=10)[:10]
            if inode != "0" and (state == "0A" or protocol.startswith("udp") or not _is_loopback(remote)):
                yield Socket(protocol, local, remote, state, inode)


@cache
def _readable(address: str) -> str:
    """An address as the kernel writes it, `0100007F:1F90`, as `127.0.0.1:8080`."""
    words, _, port = address.partition(":")
    raw = b"".join(bytes.fromhex(words[start : start + 8])[::-1] for start in range(0, len(words), 8))
    host = ipaddress.ip_address(raw)
    return f"{getattr(host, 'ipv4_mapped', None) or host}:{int(port, 16)}"


@cache
def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(_readable(address).rpartition(":")[0]).is_loopback


def _read(path: str) -> str:
    try:
        return Path(path).read_bytes().decode(errors="replace")
    except OSError:
        return ""


def _parent(process: int) -> int | None:
    fields = _read(f"/proc/{process}/stat").rpartition(")")[2].split()
    return int(fields[1]) if fields else None


def _state(process: int) -> str:
    return _read(f"/proc/{process}/stat").rpartition(")")[2].strip()[:1]
