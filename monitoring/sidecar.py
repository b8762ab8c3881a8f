"""The monitor process: `python -m monitoring.sidecar --config FILE.json`.

Loops of one event loop, none of which waits for another: reading the spools, the control word's
heartbeat, the control plane's heartbeat, the routing snapshot, the once-a-second sampling and the
HTTP API. Whatever fails in a loop is logged and counted, and the loop goes on.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import msgspec
import uvicorn
import uvloop
from prometheus_client import CollectorRegistry

from monitoring import state as storage
from monitoring.actuate import Actuator
from monitoring.api import allowed_hosts, build_app
from monitoring.config import TOKEN_VARIABLE, MonitorConfig, load, with_token
from monitoring.golden import Golden
from monitoring.metrics import MonitorCollector
from monitoring.reports import Reports
from monitoring.verdicts import iso
from monitoring.watch import Watch
from serving.clock import Clock, SystemClock
from serving.contract import ControlWord, Snapshot

log = logging.getLogger("canarium.monitor")

WORD_BEAT_S = 0.5
CONTROL_BEAT_S = 1.0
TICK_S = 1.0
SNAPSHOT_WAIT_S = 10
#: A monitor that has never seen a routing snapshot waits so long for one before it reads: without
#: it, it can neither tell candidates from before and after a re-arm nor race them.
SNAPSHOT_GRACE_S = 5.0
#: Without a successful read of the spools for so long, the heartbeat stops: a monitor that sees
#: nothing must not look alive.
BLIND_S = 5.0


class Sidecar:
    """Wires the parts together and runs the loops until `stop`."""

    def __init__(self, config: MonitorConfig, clock: Clock) -> None:
        self.config = config
        self.clock = clock
        headers = {"authorization": f"Bearer {config.token}"} if config.token else {}
        self.client = httpx.AsyncClient(base_url=config.control_url, headers=headers, timeout=3.0, trust_env=False)
        self.loop_errors: dict[str, int] = dict.fromkeys(
            ("ingest", "tick", "word", "heartbeat", "snapshot", "commit", "reports", "golden"), 0
        )
        self.watch = Watch(config, clock)
        self.actuator = self._actuator()
        self.gateway = httpx.AsyncClient(base_url=config.inference_url, headers=headers, trust_env=False)
        self._commit_now = asyncio.Event()
        self.golden = Golden(
            config,
            clock,
            self.gateway,
            self.watch.beside,
            lambda model: self.watch.answering(model),
            self._commit_now.set,
        )
        self.reports = Reports(config, clock, self.watch.beside, lambda: self.watch.sampled())
        self._stopping = asyncio.Event()
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="commit")  # one thread: commits in order
        self._started_ns = self._read_ns = clock.monotonic_ns()
        self._committed: tuple[object, ...] = ()
        self._resumed = False

    def _actuator(self) -> Actuator:
        return Actuator(
            self.clock,
            self.client,
            lambda: ControlWord.open(self.config.word_path),
            lambda: self.watch.snapshot,
            self.config.instance,
        )

    def restore(self) -> None:
        """Continue from the last commit; start anew if it cannot be used."""
        stored = storage.read(self.config.state_dir)
        if stored is None:
            return
        try:
            self.watch.restore(stored)
            self.actuator.load(stored.actuator)
        except Exception as error:
            storage.set_aside(self.config.state_dir, error)
            self.watch = Watch(self.config, self.clock, self.watch.beside)
            self.actuator = self._actuator()

    async def run(self, listener: socket.socket) -> None:
        """Run everything until `stop`; commits at the end."""
        server = _Server(uvicorn.Config(self._app(), log_level="warning", access_log=False, lifespan="off"))
        loops = [
            asyncio.create_task(coroutine)
            for coroutine in (
                self._forever("ingest", self.config.poll_ms / 1000, self._ingest),
                self._forever("tick", TICK_S, self._tick),
                self._forever("word", WORD_BEAT_S, self._beat_word),
                self._forever("heartbeat", CONTROL_BEAT_S, self._beat_control),
                self._forever("snapshot", 0.2, self._fetch_snapshot),
                self._forever("commit", 0.05, self._commit_when_due),
                self._forever("reports", 1.0, self.reports.step),
                self._forever("golden", 1.0, self.golden.step),
            )
        ]
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        await self._stopping.wait()
        for task in loops:
            task.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
        await self.reports.close()
        await self.actuator.close()
        server.should_exit = True
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(serving, 3.0)
        try:
            await self._commit()
        except OSError as error:
            log.error("the last commit failed: %s", error)
        self._disk.shutdown()
        await self.client.aclose()
        await self.gateway.aclose()
        self.watch.ingest.close()

    def stop(self) -> None:
        self._stopping.set()

    # ------------------------------------------------------------ loops

    async def _forever(self, name: str, pause_s: float, step: Callable[[], Awaitable[None]]) -> None:
        troubled = False
        while True:
            try:
                await step()
                troubled = False
            except Exception as error:
                self.loop_errors[name] += 1
                expected = isinstance(error, httpx.HTTPError | OSError)
                if not troubled:  # the first of a row; the counter tells how many follow
                    log.error("%s: %s", name, error or type(error).__name__, exc_info=not expected)
                troubled = True
            await asyncio.sleep(pause_s)

    async def _ingest(self) -> None:
        if self.watch.snapshot is None and self.clock.monotonic_ns() - self._started_ns < SNAPSHOT_GRACE_S * 1e9:
            self._read_ns = self.clock.monotonic_ns()
            return
        while True:
            count, trips = self.watch.step()
            self._read_ns = self.clock.monotonic_ns()
            for trip in trips:
                self.actuator.submit(trip)
            if trips:
                self._commit_now.set()
            if not count:
                return
            await asyncio.sleep(0)

    async def _tick(self) -> None:
        self.watch.tick()
        if self.clock.monotonic_ns() - self._started_ns >= SNAPSHOT_GRACE_S * 1e9:
            self._resume()

    def _resume(self) -> None:
        """Go on with what a former process left undone, once it is known whether that still holds."""
        if not self._resumed:
            self._resumed = True
            self.actuator.resume()

    async def _beat_word(self) -> None:
        if not self._blind():
            self.actuator.beat()

    async def _beat_control(self) -> None:
        response = await self.client.post("/admin/v1/monitor/heartbeat", content=self._heartbeat(), headers=_JSON)
        response.raise_for_status()
        await self.actuator.report_kills(self.config.models)

    async def _fetch_snapshot(self) -> None:
        known = self.watch.snapshot
        query: dict[str, Any] = {"rev": known.rev if known else -1, "wait_s": SNAPSHOT_WAIT_S if known else 0}
        response = await self.client.get("/admin/v1/snapshot", params=query, timeout=SNAPSHOT_WAIT_S + 5.0)
        response.raise_for_status()
        snapshot = msgspec.json.decode(response.content, type=Snapshot)
        if not self.watch.apply(snapshot):
            log.warning("snapshot rev %d of an older lease (%d) refused", snapshot.rev, snapshot.lease)
        self._resume()

    async def _commit_when_due(self) -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._commit_now.wait(), self.config.commit_s)
        self._commit_now.clear()
        await self._commit()

    async def _commit(self) -> None:
        if not self.watch.settled:
            return  # records that wait for their snapshot would be lost by a crash
        flow = self.watch.flow()
        now = (
            flow.consumed,
            flow.dropped,
            self.actuator.waiting,
            self.watch.snapshot.rev if self.watch.snapshot else -1,
            dict(self.watch.beside.golden),
        )
        folded = self.watch.ingest.folded_files
        if now == self._committed and not folded:
            return
        payload = self.watch.state(self.actuator.state())
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._disk, storage.write, self.config.state_dir, payload)
        self._committed = now
        self.watch.ingest.remove_folded(folded)

    # ------------------------------------------------------------ what is shown

    def _blind(self) -> bool:
        return self.clock.monotonic_ns() - self._read_ns > BLIND_S * 1e9

    def _mode(self) -> str:
        return "degraded" if self.watch.degraded or self._blind() else "ok"

    def _heartbeat(self) -> bytes:
        return msgspec.json.encode(
            {
                "at": iso(self.clock.wall_ns()),
                "mode": self._mode(),
                "verdicts": self.watch.verdicts(),
                "loss_ratio": round(self.watch.loss_ratio, 6),
                "instance": self.config.instance,
                "headroom": self.watch.headroom(),
                "rev": self.watch.snapshot.rev if self.watch.snapshot else None,
                "counts": self.watch.counts(),
                "assumed": self.watch.assumptions(),
            }
        )

    def _health(self) -> dict[str, Any]:
        flow = self.watch.flow()
        return {
            "ok": not self._blind(),
            "mode": self._mode(),
            "instance": self.config.instance,
            "gateways": self.watch.ingest.gateways,
            "snapshot_rev": self.watch.snapshot.rev if self.watch.snapshot else None,
            "events": msgspec.structs.asdict(flow),
            "lag_s": round(self.watch.lag_s, 3),
            "loss_ratio": round(self.watch.loss_ratio, 6),
            "loop_errors": self.loop_errors,
        }

    def _app(self) -> Any:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(MonitorCollector(self.watch, self.actuator, self.loop_errors))
        hosts = allowed_hosts(self.config.host, self.config.port)
        watch = self.watch
        return build_app(registry, watch.verdicts, watch.series, watch.calibration, self._health, self.reports, hosts)


_JSON = {"content-type": "application/json"}


class _Server(uvicorn.Server):
    """A server that leaves the process's signals alone."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listen(host: str, port: int) -> socket.socket:
    """A bound listener. Raises `OSError` if the address is taken or not ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(128)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


async def serve(config: MonitorConfig, listener: socket.socket) -> None:
    """Run the monitor until SIGTERM or SIGINT."""
    sidecar = Sidecar(config, SystemClock())
    sidecar.restore()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, sidecar.stop)
    await sidecar.run(listener)


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0 after SIGTERM, 1 if it cannot start."""
    parser = argparse.ArgumentParser(prog="python -m monitoring.sidecar", description="Canarium's monitor.")
    parser.add_argument("--config", required=True, help="JSON file (monitoring.config.MonitorConfig)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        # The token comes from the environment alone, so that it is kept in no file.
        config = with_token(load(options.config), os.environ.get(TOKEN_VARIABLE, ""))
        listener = listen(config.host, config.port)
    except ValueError as error:
        print(f"monitor: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"monitor: cannot listen on {_address(options.config)}: {error.strerror or error}", file=sys.stderr)
        return 1
    Path(config.state_dir).mkdir(mode=0o700, parents=True, exist_ok=True)
    uvloop.run(serve(config, listener))
    return 0


def _address(path: str) -> str:
    config = load(path)
    return f"{config.host}:{config.port} (server.monitor_port in the configuration file)"


if __name__ == "__main__":
    sys.exit(main())
