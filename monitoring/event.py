"""One record as the guards read it, and whom its failure counts against. Pure."""

from __future__ import annotations

import msgspec

from serving.contract import Cause, Flag, Reason

#: Reasons of requests that were divided among the arms by the split, and not by whoever sent them.
DIVIDED = (Reason.BASELINE, Reason.CANARY, Reason.FALLBACK)
#: Causes that mean the candidate had no time left or no room.
WAITED = (Cause.TIMEOUT, Cause.OVERLOADED)
_BLAMED = (Cause.TIMEOUT, Cause.DIED, Cause.OVERLOADED)
_BLAMED_IF_ANSWERED = (Cause.ERROR, Cause.INVALID_OUTPUT)


class Event(msgspec.Struct, frozen=True):
    """One record, with its variants by name."""

    kind: int
    variant: str
    answered: str = ""
    flags: int = Flag.LIVE | Flag.BASELINE_VALID
    cause: int = Cause.NONE
    status: int = 200
    epoch: int = 0
    total_us: int = 0
    batch_key: int = 0
    request_key: int = 0
    rows: int = 1
    flips: int = 0
    wall_ns: int = 0
    mono_ns: int = 0
    inclusion: float = 1.0  # of a pair: the chance with which its request was chosen to be scored
    cls: int = -1  # predicted class of row 0; of a label: the true class
    ref_cls: int = -1  # of a pair: the teacher's class of row 0
    prob: float = 0.0  # probability of the predicted class, row 0; of a KPI: its value
    ref_prob: float = 0.0  # of a pair: the teacher's probability of the candidate's class, row 0
    slices: int = 0  # bits of the declared slices that the request is in
    extra: int = 0  # of a KPI: hash of its name; of a pair, of an audit, of a request: see `packing`
    reason: int = Reason.BASELINE
    unit_key: int = 0  # keyed hash of the sticky user; 0: it has none
    overlap: int = 0  # of a pair: see `packing.pack_overlap`, row 0
    energy: float = 0.0  # -logsumexp(logits), row 0; of an audit: distance of the embedding, in thresholds


def is_killed(event: Event) -> bool:
    """Whether the model was held on its baseline when this request was routed: it is of no split, and of no race."""
    return bool(event.flags & Flag.KILLED) or event.reason == Reason.KILLED


def is_divided(event: Event) -> bool:
    """Whether the split decided who answers. What a gateway could not give to its candidate is of no arm."""
    return event.reason in DIVIDED and not is_killed(event) and not event.flags & Flag.UNOPENED


def is_error(event: Event, baseline: str) -> bool:
    """Whether a live request counts against the variant it was routed to.

    An input on which the baseline fails as well is not a candidate's fault, unless it has used up the time. The
    baseline's own failures always count: nobody can tell whether a candidate would have done better, and a race
    in which they are left out would blame a candidate for what befalls both. A refusal for want of capacity
    counts against either arm.
    """
    if event.cause in _BLAMED:
        return True
    if event.cause in _BLAMED_IF_ANSWERED:
        return event.variant == baseline or bool(event.flags & Flag.BASELINE_VALID) or event.status < 500
    return event.cause == Cause.NONE and (event.status >= 500 or event.status == 429)
