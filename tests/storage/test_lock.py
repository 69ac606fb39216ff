"""Claims about the lock: only one process writes to a run folder, and a dead one doesn't block it."""

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tpo.errors import StoreError
from tpo.storage.lock import only_writer

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time
from pathlib import Path
from tpo.storage.lock import only_writer
with only_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def a_holder(folder: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_second_process_learns_who_holds_the_run(tmp_path: Path):
    holder = a_holder(tmp_path)
    try:
        with (
            pytest.raises(
                StoreError, match=rf"process {holder.pid} on {socket.gethostname()}, started 20\d\d-.*: wait"
            ),
            only_writer(tmp_path),
        ):
            pass
    finally:
        holder.kill()
        holder.wait()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_dead_holders_lock_is_taken_over(tmp_path: Path, number: int, capsys: pytest.CaptureFixture[str]):
    holder = a_holder(tmp_path)
    os.kill(holder.pid, number)
    holder.wait()
    with only_writer(tmp_path):
        assert f"taken over from process {holder.pid}" in capsys.readouterr().err


def test_a_released_lock_leaves_nothing_to_take_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(ZeroDivisionError), only_writer(tmp_path / "run"):
        _ = 1 / 0
    with only_writer(tmp_path / "run"):
        pass
    assert capsys.readouterr().err == ""


def test_children_of_the_holder_do_not_keep_the_lock(tmp_path: Path):
    with only_writer(tmp_path):
        child = subprocess.Popen(["sleep", "60"])
    try:
        with only_writer(tmp_path):
            pass
    finally:
        child.kill()
        child.wait()


def test_a_clock_set_back_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    holder = a_holder(tmp_path)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    try:
        with pytest.raises(StoreError, match="is being written by"), only_writer(tmp_path):
            pass
    finally:
        holder.kill()
        holder.wait()
    with only_writer(tmp_path):
        pass


def test_the_holders_name_may_be_unreadable(tmp_path: Path):
    holder = a_holder(tmp_path)
    (tmp_path / ".holder.json").write_text("{")
    try:
        with pytest.raises(StoreError, match="another process"), only_writer(tmp_path):
            pass
    finally:
        holder.kill()
        holder.wait()


def test_a_file_system_without_locks_is_refused_and_no_lock_file_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def missing(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", missing)
    with (
        pytest.raises(StoreError, match=r"does not support locks \(flock\).*: mount it with locks"),
        only_writer(tmp_path),
    ):
        pass
