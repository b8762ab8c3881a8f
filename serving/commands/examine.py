"""What `canarium doctor` looks at: versions, memory and cores, ports, listeners.

Reads `/proc` (Linux); imports neither Ray nor torch.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from importlib import metadata
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from serving import processes
from serving.commands.render import plain_table
from serving.config import Config, ServerConfig
from serving.errors import StartError
from serving.paths import Paths

Json = dict[str, Any]

PACKAGES = (
    "canarium",
    "ray",
    "torch",
    "onnxruntime",
    "tokenizers",
    "numpy",
    "uvloop",
    "tritonclient",
)
#: The quickstart needs about this much; a machine with less will swap or be refused by Ray.
MEMORY_GIB = 4.0
LISTEN = "0A"  # TCP_LISTEN in /proc/net/tcp


def report(config: Config | None, state_dir: Path) -> Json:
    """Everything `doctor` says, as plain values. `ok` is False if something must be mended."""
    running = up_file(state_dir)
    pids = instance_pids(state_dir)
    server = config.server if config is not None else ServerConfig()
    checks = [_python(), _torch(), _cores(), _memory(), *_database(config), *_ports(server, pids)]
    return {
        "ok": all(check["ok"] for check in checks),
        "versions": {name: _version(name) for name in PACKAGES} | {"python": sys.version.split()[0]},
        "checks": checks,
        "running": running if pids else None,
        "listeners": listeners(pids),
    }


def render(found: Json) -> RenderableType:
    """The report for people."""
    versions = Text("  ".join(f"{name} {version or 'MISSING'}" for name, version in found["versions"].items()))
    table = plain_table("", "check", "found")
    for check in found["checks"]:
        mark = Text("ok", style="green") if check["ok"] else Text("!!", style="bold red")
        table.add_row(mark, check["name"], check["found"])
    parts: list[RenderableType] = [versions, Text(""), table]
    if found["listeners"]:
        ports = plain_table(
            "address", "port>", "pid>", "process", "reachable from", title="listeners of this deployment"
        )
        for one in found["listeners"]:
            reach = Text("this machine") if one["loopback"] else Text("other machines", style="yellow")
            ports.add_row(one["address"], str(one["port"]), str(one["pid"]), one["process"], reach)
        parts += [Text(""), ports]
    return Group(*parts)


def up_file(state_dir: Path) -> Json | None:
    """What `canarium up` wrote about itself, or None if nothing was started there."""
    try:
        value = json.loads(Paths.of(state_dir).up_file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def instance_pids(state_dir: Path) -> set[int]:
    """The living processes of the deployment with this state directory."""
    running = up_file(state_dir)
    marked = set(processes.members(Paths.of(state_dir).instance))
    return process_tree(recorded_pids(running) | marked if running else marked)


def process_tree(roots: set[int]) -> set[int]:
    """The living processes among `roots` and all their descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError, ValueError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found: set[int] = set()
    queue = [pid for pid in roots if Path(f"/proc/{pid}").exists()]
    while queue:
        pid = queue.pop()
        if pid not in found:
            found.add(pid)
            queue += children.get(pid, [])
    return found


def listeners(pids: set[int]) -> list[Json]:
    """TCP sockets on which these processes listen, by port."""
    sockets = {inode: where for family in ("tcp", "tcp6") for inode, where in _listening(family)}
    found: dict[tuple[str, int], Json] = {}
    for pid in sorted(pids):
        for inode in _socket_inodes(pid):
            if inode in sockets:
                address, port = sockets[inode]
                # The supervisor holds a gateway's sockets as well: the youngest of several is the one that answers.
                found[str(address), port] = {
                    "address": str(address),
                    "port": port,
                    "pid": pid,
                    "process": _name(pid),
                    "loopback": address.is_loopback,
                }
    return sorted(found.values(), key=lambda one: (one["port"], one["address"]))


def parse_listener(line: str) -> tuple[str, tuple[IPv4Address | IPv6Address, int]] | None:
    """One line of /proc/net/tcp{,6}: (inode, (address, port)) if it is a listener."""
    fields = line.split()
    if len(fields) < 10 or fields[3] != LISTEN:
        return None
    raw, _, port = fields[1].partition(":")
    # The kernel prints each 32-bit word of the address in host (little-endian) order.
    packed = b"".join(bytes.fromhex(raw[at : at + 8])[::-1] for at in range(0, len(raw), 8))
    address = ip_address(packed)
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return fields[9], (address, int(port, 16))


def _listening(family: str) -> list[tuple[str, tuple[IPv4Address | IPv6Address, int]]]:
    try:
        lines = Path(f"/proc/net/{family}").read_text().splitlines()[1:]
    except OSError:
        return []
    return [found for line in lines if (found := parse_listener(line)) is not None]


def _socket_inodes(pid: int) -> set[str]:
    found = set()
    try:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            try:
                target = os.readlink(link)
            except OSError:  # closed while we were looking
                continue
            if target.startswith("socket:["):
                found.add(target[8:-1])
    except OSError:  # the process ended, or belongs to somebody else
        pass
    return found


def recorded_pids(up: Json) -> set[int]:
    """Every process id that the file names: under `pid`, or in a mapping or list `pids`."""
    named = up.get("pids", [])
    values = list(named.values()) if isinstance(named, dict) else list(named)
    return {value for value in (*values, up.get("pid")) if isinstance(value, int)}


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "?"


def _check(name: str, ok: bool, found: str) -> Json:
    return {"name": name, "ok": ok, "found": found}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _python() -> Json:
    return _check("Python 3.11 or newer", sys.version_info >= (3, 11), sys.version.split()[0])


def _torch() -> Json:
    """Which wheel of torch is installed, told from its metadata alone."""
    version = _version("torch")
    if version is None:
        return _check("torch", False, "not installed; needed by `canarium build`")
    wants = metadata.requires("torch") or []
    cuda = "+cu" in version or ("+cpu" not in version and any(line.startswith("nvidia-") for line in wants))
    return _check("torch wheel", True, f"{version} ({'CUDA' if cuda else 'CPU'})")


def _cores() -> Json:
    cores = float(len(os.sched_getaffinity(0)))
    quota = _first_words("/sys/fs/cgroup/cpu.max")
    if len(quota) == 2 and quota[0] != "max":
        cores = min(cores, int(quota[0]) / int(quota[1]))
    return _check("processor cores", cores >= 2, f"{cores:g}" + ("" if cores >= 2 else "; the quickstart wants 2"))


def _memory() -> Json:
    words = {line.split(":")[0]: line.split()[1] for line in Path("/proc/meminfo").read_text().splitlines()}
    free = int(words["MemAvailable"]) / 2**20
    limit, used = _first_words("/sys/fs/cgroup/memory.max"), _first_words("/sys/fs/cgroup/memory.current")
    if limit and used and limit[0] != "max":
        free = min(free, (int(limit[0]) - int(used[0])) / 2**30)
    enough = free >= MEMORY_GIB
    return _check("free memory", enough, f"{free:.1f} GiB" + ("" if enough else f"; wants {MEMORY_GIB:g} GiB"))


def _database(config: Config | None) -> list[Json]:
    """Whether the database of the state answers, if it is another machine's business than this one's files."""
    from serving.control.database import URL_VARIABLE, Database

    if config is None or (config.state.database == "sqlite" and URL_VARIABLE not in os.environ):
        return []
    try:
        database = Database.of(config.state.database, config.state.dir)
        database.probe()
    except StartError as error:
        return [_check("state database", False, str(error))]
    return [_check("state database", True, f"{database.shown} answers")]


def _ports(server: ServerConfig, pids: set[int]) -> list[Json]:
    ours = {one["port"] for one in listeners(pids)}
    wanted = {
        "http": server.http_port,
        "grpc": server.grpc_port,
        "monitor": server.monitor_port,
        "control": server.control_port,
    }
    checks = []
    for name, port in wanted.items():
        if port in ours:
            checks.append(_check(f"port {port} ({name})", True, "used by this deployment"))
        else:
            free = _free(server.host, port)
            found = "free" if free else f"taken by another process; set server.{name}_port to a free one"
            checks.append(_check(f"port {port} ({name})", free, found))
    return checks


def _free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _first_words(path: str) -> list[str]:
    try:
        return Path(path).read_text().split()
    except OSError:
        return []
