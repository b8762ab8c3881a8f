"""The lock of a running instance, restarts, and directories in a place that is shared with other users."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from serving import paths as paths_module
from serving.paths import Paths, own_directory, write_private
from serving.processes import InstanceLock, Restarts

# ---------------------------------------------------------------- the lock


def test_the_lock_names_its_holder_and_refuses_a_second_one(tmp_path: Path) -> None:
    lock = InstanceLock(tmp_path / "up.lock")
    assert lock.holder is None
    assert lock.acquire()
    other = InstanceLock(tmp_path / "up.lock")
    assert other.holder == os.getpid()
    assert not other.acquire()
    lock.release()
    assert other.acquire()


@pytest.mark.parametrize(
    "content",
    [pytest.param(str(os.getpid()), id="us"), "1", "", "not a number", "-1"],
)
def test_what_a_crash_left_in_the_file_is_nobody(tmp_path: Path, content: str) -> None:
    """The process id may be a stranger's by now: `down` must not end it."""
    (tmp_path / "up.lock").write_text(content)
    assert InstanceLock(tmp_path / "up.lock").holder is None


def test_asking_for_the_holder_never_refuses_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "up.lock").write_text(str(os.getpid()))

    def refused(*_: object) -> None:
        raise AssertionError("the lock was tried")

    monkeypatch.setattr("fcntl.flock", refused)
    assert InstanceLock(tmp_path / "up.lock").holder is None


# ---------------------------------------------------------------- restarts


def test_a_process_that_ends_at_once_is_started_ever_later_and_a_steady_one_at_once_again() -> None:
    restarts, now, waits = Restarts(), 100.0, []
    for _ in range(7):
        restarts.started(now)
        waits.append(restarts.ended(now + 0.1))
        now += 40
    assert waits == [1, 2, 4, 8, 16, 30, 30]
    restarts.started(now)
    assert restarts.ended(now + Restarts.STEADY_S) == Restarts.FIRST_S


# ---------------------------------------------------------------- directories


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o777)
    monkeypatch.setattr(paths_module.tempfile, "gettempdir", lambda: str(shared))
    return Paths.of(tmp_path / "state")


def test_create_makes_private_directories_and_may_be_repeated(paths: Paths) -> None:
    for _ in range(2):
        paths.create()
        worker = paths.make_worker_dir("m", "v", 1)
    for folder in (paths.short_dir, paths.socket_dir, paths.run_dir, worker):
        assert folder.stat().st_mode & 0o777 == 0o700
    assert worker == paths.worker_dir("m", "v", 1)


@pytest.mark.parametrize("name", ["short_dir", "socket_dir"])
@pytest.mark.parametrize("kind", ["link", "file", "open"])
def test_a_directory_that_somebody_else_prepared_is_refused(paths: Paths, tmp_path: Path, name: str, kind: str) -> None:
    folder: Path = getattr(paths, name)
    folder.parent.mkdir(mode=0o700, exist_ok=True)
    if kind == "link":  # to a directory that is ours, even
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "elsewhere")
    elif kind == "file":
        folder.touch()
    else:
        folder.mkdir()
        folder.chmod(0o777)
    with pytest.raises(PermissionError, match=str(folder)):
        paths.create()
    with pytest.raises(PermissionError, match=str(folder)):
        own_directory(folder)


def test_the_directory_of_another_user_is_refused(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    paths.create()
    folder, stranger = paths.short_dir, os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: stranger)
    with pytest.raises(PermissionError, match="belongs to user"):
        own_directory(folder)


def test_a_sockets_directory_that_was_laid_as_a_link_is_refused(paths: Paths, tmp_path: Path) -> None:
    paths.create()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    paths.worker_dir("m", "v", 1).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PermissionError, match="not a directory"):
        paths.make_worker_dir("m", "v", 1)


def test_processes_that_start_together_agree(paths: Paths) -> None:
    together = Barrier(8)

    def start(_: int) -> str:
        together.wait()
        paths.create()
        return paths.unit_key()

    with ThreadPoolExecutor(8) as pool:
        (key,) = set(pool.map(start, range(8)))
    assert len(key) == 32
    assert [file.name for file in paths.state_dir.iterdir() if file.is_file()] == ["unit.key"]


def test_a_private_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "up.json"
    write_private(file, b"old")
    assert file.stat().st_mode & 0o777 == 0o600

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdopen", full)
        with pytest.raises(OSError, match="No space"):
            write_private(file, b"new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["up.json"]
    assert file.read_bytes() == b"old"
