"""The Markdown that `loadtests/RESULTS.md` takes: every cell is the median over the rounds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from loadtests.load import Result

Record = Mapping[str, Any]
REFERENCE = "Canarium, isolated"
AT = 32
NONE = "–"
#: Processes with a smaller share of a server's CPU are added up.
SMALL_SHARE = 0.03


def render(document: Mapping[str, Any]) -> str:
    """All tables of a run.

    Args:
        document: what `run.measure` collected: `about`, `peers`, `ceilings`, `records`, `grpc`, `stock`, `safety`.
    """
    about, records = document["about"], document["records"]
    lines = [
        f"Command: `{about['command']}`, {about['date']}. {about['machine']}",
        "",
        f"Versions: {about['versions']}.",
    ]
    for case in dict.fromkeys(record["case"] for record in records):
        own = [record for record in records if record["case"] == case]
        bare = _bare(document["ceilings"].get(case, []))
        best = max(bare, key=lambda row: row["rows_per_s"], default=None)
        lines += ["", f"### {case[:1].upper()}{case[1:]}", ""]
        if best is not None:
            lines += [_ceiling_line(best, bare), ""]
        lines += [*_throughput(own, best["rows_per_s"] if best else None), "", *_latency(own, bare), "", *_cpu(own)]
        lines += _faults(own)
    if document.get("grpc"):
        lines += ["", "### gRPC", "", *_grpc(document["grpc"]), *_faults(document["grpc"])]
    if document.get("stock"):
        lines += ["", "### tritonclient, one connection", "", *_stock(document["stock"])]
    if document.get("safety"):
        lines += ["", "### The cost of safety", "", *_safety(document["safety"])]
    lines += ["", "### Settings", "", *_settings(document["peers"])]
    return "\n".join(lines) + "\n"


def _bare(rows: Iterable[Record]) -> list[Record]:
    """The bare session's shapes and batch sizes, each the median over the rounds."""
    kinds: dict[tuple[int, int, int], list[Record]] = {}
    for row in rows:
        kinds.setdefault((row["processes"], row["threads"], row["batch"]), []).append(row)
    return [
        {**own[0], **{name: median(row[name] for row in own) for name in ("rows_per_s", "ms_per_batch")}}
        for own in kinds.values()
    ]


def _ceiling_line(best: Record, rows: Sequence[Record]) -> str:
    single = max(row["rows_per_s"] for row in rows if row["batch"] == 1)
    alone = _one_row_ms(rows, threads=1)
    took = f", one row alone in {alone:.2f} ms" if alone is not None else ""
    shape = f"{best['processes']} × {best['threads']} thread{'s' if best['threads'] > 1 else ''}"
    return (
        f"Bare session: **{best['rows_per_s']:,.0f} rows/s** at best ({shape}, batches of {best['batch']}), "
        f"{single:,.0f} one row at a time{took}."
    )


def _one_row_ms(rows: Iterable[Record], threads: int) -> float | None:
    """What one row takes a session of so many threads that has the machine to itself."""
    found = [row["ms_per_batch"] for row in rows if (row["processes"], row["threads"], row["batch"]) == (1, threads, 1)]
    return found[0] if found else None


def _throughput(records: Sequence[Record], ceiling: float | None) -> list[str]:
    counts = _counts(records)
    head = ["server", "body", "workers × threads", *(f"{count} conn." for count in counts)]
    head += [f"of the bare session at {AT}", f"to {REFERENCE} at {AT}", "CPU s / 1,000", "MiB", "failed"]
    reference = _rate(_of(records, REFERENCE), AT)
    rows = []
    for peer, own in _by_peer(records):
        rate = _rate(own, AT)
        failed = sum(Result(**record["result"]).failed + record["result"]["unsent"] for record in own)
        rows.append(
            [
                peer,
                own[0]["wire"],
                f"{own[0]['workers']} × {own[0]['threads']}",
                *(_number(_rate(own, count)) for count in counts),
                _ratio(rate, ceiling),
                _ratio(rate, reference),
                _number(_middle(_closed(own, AT), _cpu_per_thousand), 3),
                _number(_middle(own, lambda record: record["memory_mib"])),
                f"{failed:,}",
            ]
        )
    return ["Requests/s (closed loop):", "", *_markdown(head, rows, left=3)]


def _latency(records: Sequence[Record], bare: Sequence[Record]) -> list[str]:
    counts = _counts(records)
    shares = sorted({record["share"] for record in records if record.get("share")})
    head = ["server", *(f"{count} conn." for count in counts)]
    head += [f"open loop, {share:.0%} of its own {AT}" for share in shares]
    head.insert(1, "added p50, 1 conn.")
    rows = []
    for peer, own in _by_peer(records):
        alone = _one_row_ms(bare, own[0]["threads"])
        p50_us = _middle(_closed(own, 1), lambda record: record["result"]["latency_us"].get("p50"))
        cells = [NONE if alone is None or p50_us is None else f"{p50_us / 1000 - alone:.2f}"]
        cells += [_triple(_closed(own, count)) for count in counts]
        cells += [_triple([record for record in own if record.get("share") == share]) for share in shares]
        rows.append([peer, *cells])
    return ["Latency, p50 / p99 / p99.9 in ms:", "", *_markdown(head, rows)]


def _cpu(records: Sequence[Record]) -> list[str]:
    rows = []
    for peer, own in _by_peer(records):
        closed = _closed(own, AT)
        if closed:
            rows.append([peer, _breakdown(closed), _number(_middle(closed, _client_us))])
    return [
        f"CPU s / 1,000 requests by process, at {AT} connections:",
        "",
        *_markdown(["server", "processes", "client, µs a request"], rows, left=2),
    ]


def _breakdown(records: Sequence[Record]) -> str:
    names = Counter[str]()
    for record in records:
        for name, seconds in record["cpu_s"].items():
            names[name] += seconds / max(1, record["result"]["count"]) * 1000 / len(records)
    large = [(name, value) for name, value in names.most_common() if value >= SMALL_SHARE * names.total()]
    rest = names.total() - sum(value for _, value in large)
    parts = [f"{name.removeprefix('ray::')} {value:.3f}" for name, value in large]
    return ", ".join([*parts, f"others {rest:.3f}"] if rest > 0.0005 else parts)


def _faults(records: Sequence[Record]) -> list[str]:
    faults = {record["peer"]: record["error"] for record in records if "error" in record}
    return [""] + [f"- {peer}: {_short(error)}" for peer, error in faults.items()] if faults else []


def _short(error: str) -> str:
    """The first line and the last, which is where tracebacks say what happened."""
    lines = [line.strip() for line in error.strip().splitlines() if line.strip()]
    return lines[0] if len(lines) < 2 else f"{lines[0]} {lines[-1]}"[:400]


def _grpc(records: Sequence[Record]) -> list[str]:
    counts = _counts(records)
    head = ["case", "server", *(f"{count} conn., calls/s" for count in counts)]
    head += [*(f"{count} conn., p50 / p99 / p99.9 ms" for count in counts), "client, µs a call"]
    rows = []
    for case in dict.fromkeys(record["case"] for record in records):
        for peer, own in _by_peer([record for record in records if record["case"] == case]):
            rates = [_number(_rate(own, count)) for count in counts]
            times = [_triple(_closed(own, count)) for count in counts]
            rows.append([case, peer, *rates, *times, _number(_middle(own, _client_us))])
    return _markdown(head, rows, left=2)


def _stock(records: Sequence[Record]) -> list[str]:
    rows = []
    for key in dict.fromkeys((record["case"], record["peer"]) for record in records):
        own = [record for record in records if (record["case"], record["peer"]) == key]
        http, grpc = (median(record[f"{name}_p50_us"] for record in own) for name in ("http", "grpc"))
        tails = (median(record[f"{name}_p99_us"] for record in own) for name in ("http", "grpc"))
        cells = [f"{value / 1000:.3f}" for value in (http, grpc, *tails)]
        rows.append([*key, *cells[:2], f"{grpc / http:.2f}", *cells[2:]])
    head = ["case", "server", "HTTP binary p50, ms", "gRPC p50, ms", "gRPC / HTTP", "HTTP p99, ms", "gRPC p99, ms"]
    return _markdown(head, rows, left=2)


def _safety(records: Sequence[Record]) -> list[str]:
    rows = []
    for peer, all_of_peer in _by_peer(records):
        names = list(dict.fromkeys(record["row"] for record in all_of_peer))
        first = [record for record in all_of_peer if record["row"] == names[0]]
        for name in names:
            own = [record for record in all_of_peer if record["row"] == name]
            rate = _middle(own, lambda record: record["result"]["rate"])
            cells = [_number(rate), _change(own, first), _triple(own)]
            rows.append([peer, name, *cells, _number(_middle(own, _cpu_per_thousand), 3), _breakdown(own)])
    head = ["server", "with", "requests/s", "to the first row", "p50 / p99 / p99.9 ms", "CPU s / 1,000", "by process"]
    return _markdown(head, rows, left=2)


def _change(records: Sequence[Record], first: Sequence[Record]) -> str:
    """Median of the rates' change from the first row of the same round, with its quartiles over the rounds."""
    pairs = [(row["result"]["rate"], base["result"]["rate"]) for row, base in zip(records, first, strict=False)]
    changes = sorted(rate / base - 1 for rate, base in pairs if base)
    if not changes:
        return NONE
    if records == first:
        return "–"
    quarter = len(changes) // 4
    return f"{median(changes):+.1%} ({changes[quarter]:+.1%} to {changes[-1 - quarter]:+.1%})"


def _settings(peers: Iterable[Record]) -> list[str]:
    return _markdown(["server", "settings"], [[peer["name"], peer["settings"]] for peer in peers], left=2)


# ---------------------------------------------------------------- cells


def _by_peer(records: Sequence[Record]) -> list[tuple[str, list[Record]]]:
    names = dict.fromkeys(record["peer"] for record in records if "error" not in record)
    return [(name, _of(records, name)) for name in names]


def _of(records: Sequence[Record], peer: str) -> list[Record]:
    return [record for record in records if record["peer"] == peer and "error" not in record]


def _closed(records: Sequence[Record], connections: int) -> list[Record]:
    return [record for record in records if record.get("connections") == connections and not record.get("share")]


def _counts(records: Sequence[Record]) -> list[int]:
    return sorted({record["connections"] for record in records if "error" not in record and not record.get("share")})


def _rate(records: Sequence[Record], connections: int) -> float | None:
    return _middle(_closed(records, connections), lambda record: record["result"]["rate"])


def _middle(records: Sequence[Record], value: Callable[[Record], float | None]) -> float | None:
    values = [found for record in records if (found := value(record)) is not None]
    return median(values) if values else None


def _cpu_per_thousand(record: Record) -> float | None:
    count = record["result"]["count"]
    return sum(record["cpu_s"].values()) / count * 1000 if count else None


def _client_us(record: Record) -> float | None:
    return Result(**record["result"]).cpu_us_per_request


def _triple(records: Sequence[Record]) -> str:
    cells = []
    for name in ("p50", "p99", "p99.9"):
        middle = _middle(records, lambda record, name=name: record["result"]["latency_us"].get(name))  # type: ignore[misc]
        cells.append(NONE if middle is None else f"{middle / 1000:.2f}")
    return " / ".join(cells)


def _number(value: float | None, digits: int = 0) -> str:
    return NONE if value is None else f"{value:,.{digits}f}"


def _ratio(value: float | None, to: float | None) -> str:
    if value is None or not to:
        return NONE
    return f"{value / to:.2f}" if value >= to / 10 else f"{value / to:.1g}"


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> list[str]:
    marks = ["---" if at < left else "---:" for at in range(len(head))]
    return ["| " + " | ".join(cells) + " |" for cells in (head, marks, *rows)]
