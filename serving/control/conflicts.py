"""What a command has to yield to that its author may not know of: the control word, a brake pulled meanwhile, a guard.

Pure, but for the monitor's last heartbeat.
"""

from __future__ import annotations

import msgspec

from serving.control.monitor_link import MonitorLink
from serving.control.word import Look
from serving.core.commands import ALL, Command, ControlState, Kill, Outcome, Rearm, Rollback, SetTraffic
from serving.core.killswitch import OFF, engage
from serving.core.routing import weights as shares_of
from serving.errors import ErrorKind, RequestError


def claimed(state: ControlState, command: Kill | Rollback, look: Look) -> tuple[Kill | Rollback, Look]:
    """The command with the seqs that the word gave its latches, and the look without those latches.

    The monitor writes the word first and then asks here: that is one act, and its own words
    belong in the trail, not "found in the control word".
    """
    kills, vetoes = dict(look.found.kills), dict(look.found.vetoes)
    if isinstance(command, Kill):
        seq, known = engage(kills.pop(command.model, OFF)).seq, state.kills.get(command.model, OFF)
        if not known.on or seq > known.seq:  # else the word holds nothing new, and this is a kill of its own
            command = msgspec.structs.replace(command, at_least=max(command.at_least, seq))
    elif (table := state.tables.get(command.model)) is not None:
        names = {command.variant} if command.variant else table.candidates.keys() | table.shadow.keys()
        seqs = {name: engage(vetoes.pop(f"{command.model}/{name}", OFF)).seq for name in names}
        command = msgspec.structs.replace(command, at_least=seqs)
    found = msgspec.structs.replace(look.found, kills=kills, vetoes=vetoes)
    return command, Look(found, look.doubtful)


def refuse_if_rearmed(state: ControlState, command: Command) -> None:
    """A kill whose number was re-armed is told late: it may not strike what is armed since."""
    if isinstance(command, Kill) and 0 < command.at_least <= state.kills.get(command.model, OFF).cleared:
        whose = "all models" if command.model == ALL else command.model
        raise RequestError(
            ErrorKind.CONFLICT,
            f"kill {command.at_least} of {whose} was re-armed already: nothing was changed; "
            "without a kill_seq this is a kill of its own",
        )


def above(state: ControlState, command: Kill | Rollback, in_flight: Command | None) -> Kill | Rollback:
    """The command with seqs above all that a change which is being saved may be about to clear.

    That change was asked for before this brake was pulled, so it may not undo it.
    """
    if isinstance(command, Kill):
        if isinstance(in_flight, Rearm) and in_flight.model == command.model:
            seq = state.kills.get(command.model, OFF).seq + 1
            command = msgspec.structs.replace(command, at_least=max(command.at_least, seq))
    elif isinstance(in_flight, SetTraffic) and in_flight.model == command.model:
        names = {command.variant} if command.variant else command.at_least.keys() | wanted(in_flight)
        seqs = {name: state.vetoes.get(f"{command.model}/{name}", OFF).seq + 1 for name in names}
        at_least = {name: max(seq, command.at_least.get(name, 0)) for name, seq in seqs.items()}
        command = msgspec.structs.replace(command, at_least=at_least)
    return command


def wanted(command: SetTraffic) -> set[str]:
    """The variants that a command gives traffic or copies of it."""
    return {name for shares in (command.weights, command.shadow) for name, share in shares.items() if share}


def unless_paused(state: ControlState, command: Command, monitor: MonitorLink) -> Command:
    """Refuse to raise a weight while a guard pauses the ramp; an override goes into the trail."""
    if not isinstance(command, SetTraffic) or (table := state.tables.get(command.model)) is None:
        return command
    pauses, held = monitor.pauses(command.model), shares_of(table)
    raised = {
        name: pauses[name]
        for name, percent in command.weights.items()
        if name in pauses and name in held and percent * 100 > held[name] + 0.5
    }
    if not raised:
        return command
    if not command.override_pause:
        raise RequestError(
            ErrorKind.CONFLICT,
            f"{', '.join(sorted(raised))} may not get more traffic, the monitor pauses the ramp: "
            f"{'; '.join(raised[name] for name in sorted(raised))}: nothing was changed. Lower weights are accepted; "
            'to raise it all the same, ask again with "override_pause": true',
        )
    evidence = {**command.by.evidence, "override_pause": raised}
    return msgspec.structs.replace(command, by=msgspec.structs.replace(command.by, evidence=evidence))


def refuse_if_vetoed_since(command: Command, base: ControlState, now: ControlState) -> None:
    """Traffic may not clear a rollback that came while it was being saved."""
    if not isinstance(command, SetTraffic):
        return
    for name in sorted(wanted(command)):
        slot = f"{command.model}/{name}"
        latch = now.vetoes.get(slot, OFF)
        if latch.on and latch.seq > base.vetoes.get(slot, OFF).seq:
            raise RequestError(
                ErrorKind.CONFLICT,
                f"{name} was rolled back in the meantime (veto {latch.seq}): the change was undone; "
                "ask again if it is to have traffic all the same",
            )


def refuse_if_just_rolled_back(command: Command, imported: Outcome) -> None:
    """Traffic may not clear a rollback that its author cannot have known of."""
    if not isinstance(command, SetTraffic):
        return
    for row in imported.audit:
        if row.action == "rollback" and row.model == command.model and row.variant in wanted(command):
            latch = imported.state.vetoes.get(f"{row.model}/{row.variant}", OFF)
            raise RequestError(
                ErrorKind.CONFLICT,
                f"{row.variant} was rolled back in the meantime (veto {latch.seq}, {row.reason}): "
                "nothing was changed; ask again if it is to have traffic all the same",
            )
