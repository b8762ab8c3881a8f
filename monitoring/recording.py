"""Recorded events of one model, from as many files as there are, in the order in which they came about. Pure.

Files of one boot are merged by the monotonic clock, each in its own order, which is what the monitor reads.
Boots are told apart by their start (wall clock less monotonic clock) and follow one another.
"""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt

from monitoring.evidence import Records
from serving.contract import RECORD_DTYPE

Ints = npt.NDArray[np.int64]

#: As `series` or `answered` of a record: nothing that a dictionary names.
NOBODY = 65_535
#: Starts of a boot that are further apart than this, nanoseconds, are two; a clock that is set right moves less.
SAME_BOOT_NS = 60_000_000_000
_SEQ_BITS = 48


class Recording(msgspec.Struct):
    """Records and what their small integers mean.

    Args:
        series: (model, variant) of each id in the records' `series` and `answered`.
        spools: nonces of the spools that the records were written to.
        spool: for each record, the index of its spool.
    """

    series: list[tuple[str, str]]
    spools: list[str]
    spool: Ints
    records: Records

    @property
    def variants(self) -> list[str]:
        return [variant for _, variant in self.series]


def merged(parts: list[Recording], model: str, since_ns: int = 0, until_ns: int = 1 << 63) -> Recording:
    """The records of one model in one order. One that several files hold counts once.

    Args:
        since_ns, until_ns: wall time from which and before which records count, nanoseconds since the epoch.
    """
    series: dict[tuple[str, str], int] = {}
    spools: dict[str, int] = {}
    taken: list[Records] = [np.empty(0, dtype=RECORD_DTYPE)]
    owners: list[Ints] = [np.empty(0, dtype=np.int64)]
    for part in parts:
        ids = [series.setdefault(key, len(series)) if key[0] == model else NOBODY for key in part.series]
        renamed = np.array([*ids, NOBODY], dtype=np.int64)
        routed, answered = (renamed[np.minimum(part.records[at], len(ids))] for at in ("series", "answered"))
        wall = part.records["wall_ns"]
        keep = (routed != NOBODY) & (wall >= since_ns) & (wall < until_ns)
        records = part.records[keep]
        records["series"], records["answered"] = routed[keep], answered[keep]
        taken.append(records)
        owners.append(
            np.array([spools.setdefault(name, len(spools)) for name in part.spools], np.int64)[part.spool][keep]
        )
    order = _order(taken)
    records, owner = np.concatenate(taken)[order], np.concatenate(owners)[order]
    once = (owner << _SEQ_BITS) | records["seq"].astype(np.int64)
    first = np.sort(np.unique(once, return_index=True)[1])
    return Recording(list(series), list(spools), owner[first], records[first])


def _order(parts: list[Records]) -> Ints:
    """Indices that put the concatenated parts in order."""
    boots = _boots(np.concatenate(parts))
    keys, start = [], 0
    for records in parts:
        # Never back within a file: its own order is how it was read, whatever the clock says.
        key, boot = _signed(records["mono_ns"]), boots[start : start + len(records)]
        for one in np.unique(boot):
            key[boot == one] = np.maximum.accumulate(key[boot == one])
        keys.append(key)
        start += len(records)
    return np.lexsort((np.concatenate(keys), boots))


def _boots(records: Records) -> Ints:
    """For each record a number that grows with the boot it is of."""
    started = _signed(records["wall_ns"]) - _signed(records["mono_ns"])
    at, inverse = np.unique(started, return_inverse=True)
    groups: Ints = np.cumsum(np.diff(at, prepend=at[:1]) > SAME_BOOT_NS)
    return groups[inverse]


def _signed(values: npt.NDArray[np.uint64]) -> Ints:
    return np.minimum(values, np.uint64(1 << 62)).astype(np.int64)
