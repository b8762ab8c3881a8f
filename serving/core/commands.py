"""What the control plane keeps, what may be asked of it, and what comes of it. Values only.

`serving.control.state.step` turns a (state, command, time) into an `Outcome`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from serving.contract import Latch, RouteTable, Snapshot, VariantEntry
from serving.core.killswitch import KillNote
from serving.core.rollout import Event, Rollout
from serving.core.rollout_policy import Policy

#: The model name that stands for all models in a kill.
ALL = "*"
#: The actor of changes that were found in the control word.
CONTROL_WORD = "control-word"


class By(msgspec.Struct, frozen=True):
    """Who asks for a change, why, and on what evidence."""

    actor: str
    reason: str
    evidence: dict[str, Any] = {}


class Mark(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When, by whom and why a latch was put in force. `at_ns`: nanoseconds since the Unix epoch."""

    at_ns: int
    actor: str
    reason: str


class Promoted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A baseline that a rollout put in place of `instead_of`, which the configuration file names."""

    baseline: str
    instead_of: str


class ControlState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything the control plane must not forget; immutable, kept as one JSON document.

    `kills` and `killed` are keyed by model name ("*" for all models), `vetoes` and
    `rolled_back` by "model/variant", `rollouts` by their ids, `promoted` by model name.
    """

    lease: int = 0
    rev: int = 0
    tables: dict[str, RouteTable] = {}
    kills: dict[str, Latch] = {}
    vetoes: dict[str, Latch] = {}
    killed: dict[str, Mark] = {}
    rolled_back: dict[str, Mark] = {}
    rollouts: dict[str, Rollout] = {}
    #: Rollouts ever started; the latest one's number.
    rollout_seq: int = 0
    promoted: dict[str, Promoted] = {}

    def snapshot(self) -> Snapshot:
        """The part that gateways obey, and the states of the latest rollout of each variant for the monitor."""
        states = {f"{rollout.model}/{rollout.variant}": str(rollout.state) for rollout in self.latest_rollouts()}
        return Snapshot(self.rev, self.lease, self.tables, self.kills, self.vetoes, states)

    def latest_rollouts(self) -> list[Rollout]:
        """One rollout of each variant that has had any: the live one, else the one that was started or tried last."""
        ordered = sorted(self.rollouts.values(), key=lambda rollout: (rollout.live, rollout.created_ns))
        return list({(rollout.model, rollout.variant): rollout for rollout in ordered}.values())


# ---------------------------------------------------------------- commands


class SetTraffic(msgspec.Struct, frozen=True):
    """Set shares of live traffic, of shadow copies and of reference scoring; what is not named stays.

    Args:
        weights: percent of live traffic of each named candidate, 0..100 in steps of 0.01.
        shadow: percent of requests copied to each named variant.
        reference_percent: percent of candidate answers that the teacher scores again.
        salt: the routing salt to use if the model goes from no candidate to some.
        expect_epoch: refuse unless the table still has this epoch.
        override_pause: raise a weight although a guard of the monitor says that the ramp pauses.
    """

    model: str
    by: By
    salt: str
    weights: dict[str, float] = {}
    shadow: dict[str, float] = {}
    reference_percent: float | None = None
    expect_epoch: int | None = None
    override_pause: bool = False


class Rollback(msgspec.Struct, frozen=True):
    """Take a variant (None: every candidate, shadow and rollout under way) out of traffic and latch its veto.

    `at_least`: lowest veto seq of each variant; with None those named here are taken out too.
    """

    model: str
    by: By
    variant: str | None = None
    at_least: dict[str, int] = {}


class Kill(msgspec.Struct, frozen=True):
    """Put a model ("*": all models) on its baseline until re-armed. `at_least`: lowest kill seq."""

    model: str
    by: By
    at_least: int = 0


class Rearm(msgspec.Struct, frozen=True):
    """Clear the kill that `kill_seq` names, and no other. `expect_epoch`: as in `SetTraffic`."""

    model: str
    by: By
    kill_seq: int
    expect_epoch: int | None = None


class ImportWord(msgspec.Struct, frozen=True):
    """Take over the latches found in the control word, keyed as in `ControlState`.

    An unreadable latch counts as in force. With `starting`, a latch that the word holds in
    force is taken over even if the store has seen a higher seq: the word may have been made
    anew, and counted from one again, while no control plane ran. `notes`: what was left to be
    said of kills.
    """

    kills: dict[str, Latch] = {}
    vetoes: dict[str, Latch] = {}
    unreadable: frozenset[str] = frozenset()
    starting: bool = False
    notes: tuple[KillNote, ...] = ()


class ModelSpec(msgspec.Struct, frozen=True):
    """What the configuration says of one model. Shares are in basis points."""

    baseline: str
    teacher: str
    variants: dict[str, VariantEntry]
    salt: str
    weights: dict[str, int] = {}
    shadow: dict[str, int] = {}
    reference_bp: int = 0


class ApplyModels(msgspec.Struct, frozen=True):
    """Make the tables follow the configuration; shares are taken from it for unknown models only."""

    models: dict[str, ModelSpec]
    by: By


class StartRollout(msgspec.Struct, frozen=True):
    """Begin a staged rollout of a variant that has no live traffic. `expect_epoch`: as in `SetTraffic`."""

    model: str
    variant: str
    policy: Policy
    policy_name: str
    by: By
    expect_epoch: int | None = None


class MoveRollout(msgspec.Struct, frozen=True):
    """Carry out one event of a rollout. `salt` and `expect_epoch`: as in `SetTraffic`."""

    id: str
    event: Event
    by: By
    salt: str
    expect_epoch: int | None = None


Command = SetTraffic | Rollback | Kill | Rearm | ImportWord | ApplyModels | StartRollout | MoveRollout


# ---------------------------------------------------------------- outcomes


class AuditDraft(msgspec.Struct, frozen=True):
    """An audit row before it has its place in the chain. `at_ns`: nanoseconds since the Unix epoch."""

    at_ns: int
    actor: str
    action: str
    model: str
    variant: str | None
    reason: str
    before: dict[str, Any]
    after: dict[str, Any]
    evidence: dict[str, Any] = {}


class WordWrite(msgspec.Struct, frozen=True):
    """Effect on one slot of the control word: put in force with at least `seq`, or clear up to it."""

    model: str
    variant: str
    seq: int
    on: bool


class Outcome(msgspec.Struct, frozen=True):
    """What a command came to. `state` is the very same object if nothing changed."""

    state: ControlState
    audit: tuple[AuditDraft, ...] = ()
    effects: tuple[WordWrite, ...] = ()
    #: Lines for the operator: where configuration and store differ.
    notes: tuple[str, ...] = ()
