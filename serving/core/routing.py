"""Where a request goes: a pure function of an immutable table.

A model's traffic is 10,000 buckets; a sticky key always falls into the same one until the
salt changes. A candidate owns a set of bucket intervals. Raising a weight takes buckets from
the baseline only, lowering gives the latest ones back, and nothing is ever repacked: a ramp
only adds users, and two candidates never disturb each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec
import xxhash

from serving.contract import BUCKETS, Reason, RouteTable, Snapshot

Intervals = tuple[tuple[int, int], ...]


class Route(msgspec.Struct, frozen=True):
    """The decision for one request."""

    variant: str
    reason: Reason
    shadows: tuple[str, ...] = ()
    reference: bool = False


def bucket_of(salt: str, key: str, domain: str = "route") -> int:
    """Bucket in [0, 10000) of a sticky key or a request id. Domains (`route`, `shadow:V`, ...) are independent."""
    return xxhash.xxh3_64_intdigest(f"{domain}\0{salt}\0{key}") % BUCKETS


def size(intervals: Intervals) -> int:
    """Buckets covered by disjoint half-open intervals."""
    return sum(high - low for low, high in intervals)


def candidate_at(table: RouteTable, bucket: int) -> str | None:
    """The candidate that owns a bucket, or None for the baseline."""
    for name, intervals in table.candidates.items():
        for low, high in intervals:
            if low <= bucket < high:
                return name
    return None


def route(
    table: RouteTable,
    key: str,
    request_id: str | None = None,
    *,
    killed: bool = False,
    vetoed: frozenset[str] = frozenset(),
) -> Route:
    """Decide one live request (not pinned, not overridden).

    Users are divided among those who answer; what is copied or scored is a share of the requests, whoever sends them.

    Args:
        table: the model's table.
        key: the sticky key; without one the request id.
        request_id: None: the key is one.
        killed: the model's kill-switch is on: only the baseline answers, nothing is copied.
        vetoed: candidates rolled back by a control word that the table does not show yet.
    """
    owner = candidate_at(table, bucket_of(table.salt, key))
    if killed:
        return Route(table.baseline, Reason.KILLED if owner is not None else Reason.BASELINE)
    drawn = key if request_id is None else request_id
    shadows = tuple(
        name
        for name, share in table.shadow.items()
        if name not in vetoed and name != owner and bucket_of(table.salt, drawn, f"shadow:{name}") < share
    )
    if owner is None or owner in vetoed:
        return Route(table.baseline, Reason.BASELINE, shadows)
    scored = bucket_of(table.salt, drawn, "reference") < table.reference_bp
    return Route(owner, Reason.CANARY, shadows, scored)


def with_weight(table: RouteTable, variant: str, share: int, *, epoch: int) -> RouteTable:
    """The table in which `variant` owns exactly `share` buckets.

    Args:
        share: buckets (basis points), 0..10000.
        epoch: the epoch of the resulting table.

    Raises:
        ValueError: unknown variant, the baseline itself, or more than the baseline has left.
    """
    if variant == table.baseline:
        raise ValueError(f"{variant} is the baseline, which gets what the others leave")
    if variant not in table.variants:
        raise ValueError(f"unknown variant {variant}, expected one of {', '.join(sorted(table.variants))}")
    if not 0 <= share <= BUCKETS:
        raise ValueError(f"a share is between 0 and {BUCKETS} basis points, got {share}")
    mine = table.candidates.get(variant, ())
    held = size(mine)
    if share > held:
        taken = [span for name, spans in table.candidates.items() for span in spans]
        free = BUCKETS - sum(high - low for low, high in taken)
        if share - held > free:
            raise ValueError(
                f"{variant} at {share / 100:g} % needs {(share - held) / 100:g} % more, "
                f"the baseline has {free / 100:g} %"
            )
        mine = _joined((*mine, *_take(_gaps(taken), share - held)))
    elif share < held:
        mine = _give_back(mine, held - share)
    candidates = {name: spans for name, spans in table.candidates.items() if name != variant}
    since = {name: at for name, at in table.since.items() if name != variant}
    if share:
        candidates[variant] = mine
        since[variant] = table.since.get(variant, epoch) if held else epoch
    return msgspec.structs.replace(table, candidates=candidates, since=since, epoch=epoch)


def without_candidates(table: RouteTable, *, epoch: int) -> RouteTable:
    """The table after a rollback of everything: baseline only, no shadow."""
    return msgspec.structs.replace(table, candidates={}, since={}, shadow={}, epoch=epoch)


def weights(table: RouteTable) -> dict[str, int]:
    """Basis points of every variant, the baseline included; they add up to 10000."""
    shares = {name: size(table.candidates.get(name, ())) for name in table.variants}
    shares[table.baseline] = BUCKETS - sum(size(spans) for spans in table.candidates.values())
    return shares


def killed(snapshot: Snapshot, model: str) -> bool:
    """Whether the published kill latches put `model` on its baseline."""
    return any(latch.on for name in (model, "*") if (latch := snapshot.kills.get(name)) is not None)


def vetoed(snapshot: Snapshot, model: str) -> frozenset[str]:
    """Candidates of `model` with a published veto in force."""
    prefix = f"{model}/"
    return frozenset(
        name.removeprefix(prefix) for name, latch in snapshot.vetoes.items() if latch.on and name.startswith(prefix)
    )


def initial_table(table: RouteTable, shares: Mapping[str, int]) -> RouteTable:
    """Seed a new model's table with the configured weights (basis points)."""
    for name, share in shares.items():
        table = with_weight(table, name, share, epoch=table.epoch)
    return table


def _joined(spans: Iterable[tuple[int, int]]) -> Intervals:
    """Adjacent spans in one, in the order in which they were taken, so that the latest can be given back first."""
    merged: list[tuple[int, int]] = []
    for low, high in spans:
        if merged and merged[-1][1] == low:
            merged[-1] = (merged[-1][0], high)
        else:
            merged.append((low, high))
    return tuple(merged)


def _gaps(taken: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    gaps, edge = [], 0
    for low, high in sorted(taken):
        if low > edge:
            gaps.append((edge, low))
        edge = high
    if edge < BUCKETS:
        gaps.append((edge, BUCKETS))
    return gaps


def _take(gaps: Iterable[tuple[int, int]], count: int) -> list[tuple[int, int]]:
    spans = []
    for low, high in gaps:
        step = min(high - low, count)
        if step:
            spans.append((low, low + step))
        count -= step
    return spans


def _give_back(spans: Intervals, count: int) -> Intervals:
    kept = list(spans)
    while count:
        low, high = kept.pop()
        step = min(high - low, count)
        if high - low > step:
            kept.append((low, high - step))
        count -= step
    return tuple(kept)
