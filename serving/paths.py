"""Where a running instance keeps its files, all derived from its state directory."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from serving.contract import WORD_FILE


@dataclass(frozen=True)
class Paths:
    """Files of one instance. Directories that others must not read are created 0700."""

    state_dir: Path

    @classmethod
    def of(cls, state_dir: str | Path) -> Paths:
        return cls(Path(state_dir).resolve())

    @property
    def instance(self) -> str:
        """Eight hexadecimal digits naming the instance; the same for the same state directory."""
        return hashlib.sha256(str(self.state_dir).encode()).hexdigest()[:8]

    @property
    def run_dir(self) -> Path:
        return self.state_dir / "run"

    @property
    def up_file(self) -> Path:
        """Process id and addresses of the running instance."""
        return self.run_dir / "up.json"

    @property
    def instance_file(self) -> Path:
        """The configuration that the instance was started with, its artifacts as revisions."""
        return self.run_dir / "instance.json"

    @property
    def lock_file(self) -> Path:
        """Locked by `up` while it lives."""
        return self.run_dir / "up.lock"

    @property
    def control_lock(self) -> Path:
        """Locked by a control plane while it has the database open, whoever started it."""
        return self.run_dir / "control.lock"

    @property
    def word_path(self) -> Path:
        return self.run_dir / WORD_FILE

    @property
    def snapshot_file(self) -> Path:
        """The last routing snapshot that a gateway took over, for one that starts without a control plane."""
        return self.run_dir / "snapshot.json"

    @property
    def drain_file(self) -> Path:
        """By which the gateways of this node are asked to leave (see `serving.gateway.drain`)."""
        return self.run_dir / "drain"

    @property
    def spool_dir(self) -> Path:
        return self.run_dir / "spool"

    @property
    def payload_dir(self) -> Path:
        """Features of sampled requests, a folder a model."""
        return self.state_dir / "payloads"

    @property
    def monitor_dir(self) -> Path:
        return self.state_dir / "monitor"

    @property
    def log_dir(self) -> Path:
        return self.state_dir / "logs"

    @property
    def folders(self) -> tuple[Path, ...]:
        """The directories of the state directory, each after the one that it is in."""
        return self.run_dir, self.spool_dir, self.payload_dir, self.monitor_dir, self.log_dir

    @property
    def listeners_socket(self) -> Path:
        """Where gateways get their listening sockets; short as well."""
        return self.short_dir / "listeners.sock"

    @property
    def socket_dir(self) -> Path:
        """Unix sockets of isolated workers: short, because a socket path holds 107 bytes."""
        return self.short_dir / "w"

    @property
    def short_dir(self) -> Path:
        return Path(tempfile.gettempdir()) / f"canarium-{os.getuid()}-{self.instance}"

    def worker_dir(self, model: str, variant: str, version: int) -> Path:
        """The directory in which the replicas of one variant put their sockets."""
        key = hashlib.sha256(f"{model}\0{variant}\0{version}".encode()).hexdigest()[:12]
        return self.socket_dir / key

    def make_worker_dir(self, model: str, variant: str, version: int) -> Path:
        """Make `worker_dir` and all above it, as safely as `create` does. Raises `OSError`."""
        folder = self.worker_dir(model, variant, version)
        for each in (self.short_dir, self.socket_dir, folder):
            own_directory(each)
        return folder

    def unit_key(self) -> str:
        """The key of the hashes by which the monitor tells users apart without knowing them.

        `CANARIUM_UNIT_KEY` if it is set (on a cluster all nodes need the same), else made once for the state directory.
        """
        if given := os.environ.get("CANARIUM_UNIT_KEY"):
            return given
        file = self.state_dir / "unit.key"
        if not file.exists():
            made = _write_beside(file, secrets.token_hex(16).encode())
            try:
                with contextlib.suppress(FileExistsError):  # another process was first: its key is the key
                    os.link(made, file)
            finally:
                made.unlink()
        return file.read_text()

    def create(self) -> None:
        """Make all directories; what is there already stays, and several processes may do this at once.

        Raises:
            OSError: one cannot be made, or one in the shared temporary directory is not ours alone.
        """
        for folder in (self.state_dir, *self.folders):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in (self.short_dir, self.socket_dir):
            own_directory(folder)


def own_directory(folder: Path) -> None:
    """Make a directory of mode 0700 where others may write too (/tmp), or make sure that it is one of ours.

    Raises:
        PermissionError: something else has the name: a link, a file, a directory of another user or open to others.
        OSError: it cannot be made.
    """
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = os.lstat(folder)  # never through a link: somebody else may have laid it
    if not stat.S_ISDIR(found.st_mode):
        raise PermissionError(f"{folder} is not a directory, so it is not ours; remove it")
    if found.st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to user {found.st_uid}, not to {os.getuid()}; set TMPDIR or remove it")
    if found.st_mode & 0o077:
        raise PermissionError(f"{folder} is open to other users (mode {stat.S_IMODE(found.st_mode):o}); remove it")
    if stat.S_IMODE(found.st_mode) != 0o700:  # a strict umask took bits of ours
        folder.chmod(0o700)


def write_private(path: Path, data: bytes, like: os.stat_result | None = None) -> None:
    """Replace a file atomically; only its owner may read it. Raises `OSError`, and then the old one stays.

    Args:
        path: the file.
        data: what it holds then.
        like: whose owner, group and group's right to read the new one takes over, as far as this process may give them.
    """
    temporary = _write_beside(path, data)
    try:
        if like is not None:
            _make_like(temporary, like)
        temporary.rename(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _make_like(path: Path, like: os.stat_result) -> None:
    try:
        os.chown(path, like.st_uid if os.geteuid() == 0 else -1, like.st_gid)
    except PermissionError:  # its group would be another, which must not read it
        return
    path.chmod(0o600 | like.st_mode & 0o040)


def _write_beside(path: Path, data: bytes) -> Path:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
    except OSError:  # a full disk: leave nothing behind
        temporary.unlink(missing_ok=True)
        raise
    return temporary
