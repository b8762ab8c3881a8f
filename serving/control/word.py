"""The control plane's hold on the control word: lock-free reads here, locked writes on a thread of their own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from serving.contract import ControlWord, Latch, slot_key
from serving.control import kill_notes
from serving.core.commands import ControlState, ImportWord, WordWrite
from serving.core.killswitch import OFF

log = logging.getLogger("canarium.control")

#: Seconds that an answer waits for the word to be written; the write itself is not given up.
WRITE_PATIENCE_S = 1.0


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at the word found. `doubtful`: slots that could not be read this time."""

    found: ImportWord
    doubtful: frozenset[str]


class WordLink:
    """Reads the latches of the known models and brings the word up to the state.

    A slot counts as unreadable only when two judging looks in a row found it so: a single
    one may have met a writer half-way.

    Args:
        word: the word.
        notes: where those who set a kill in it say why (see `kill_notes`).
    """

    def __init__(self, word: ControlWord, notes: Path) -> None:
        self._word, self._notes = word, notes
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="control-word")
        self._doubtful: frozenset[str] = frozenset()

    def look(self, state: ControlState, *, judge: bool = False, starting: bool = False) -> Look:
        """Everything the word holds for the models of `state`.

        Args:
            judge: slots that this look and the last judging one could not read are unreadable; and read the notes,
                which are files: other looks must wait for no disk.
            starting: see `ImportWord`.
        """
        # Before the latches: then there is none here whose kill was not seen.
        notes = kill_notes.read(self._notes) if judge else ()
        doubtful: set[str] = set()

        def latches(slots: Iterable[tuple[str, int]]) -> dict[str, Latch]:
            found = {}
            for slot, key in slots:
                latch = self._word.latch(key)
                if latch is None:
                    doubtful.add(slot)
                found[slot] = latch or OFF
            return found

        kills = latches([("*", slot_key("*")), *((model, slot_key(model)) for model in state.tables)])
        vetoes = latches(
            (f"{model}/{variant}", slot_key(model, variant))
            for model, table in state.tables.items()
            for variant in table.variants
        )
        now, unreadable = frozenset(doubtful), frozenset[str]()
        if judge:
            unreadable, self._doubtful = now & self._doubtful, now
        return Look(ImportWord(kills, vetoes, unreadable, starting, notes), now)

    def taken(self, look: Look) -> None:
        """What this look found is taken over: its notes are of no more use."""
        if look.found.notes:
            with contextlib.suppress(OSError):  # told twice, they change nothing
                self._notes.unlink()

    def behind(self, state: ControlState, look: Look) -> list[WordWrite]:
        """The writes that bring the word up to the state; empty when it is."""
        writes: list[WordWrite] = []
        for slot, found in (look.found.kills | look.found.vetoes).items():
            if slot in look.doubtful and slot not in look.found.unreadable:
                continue
            latch = state.kills.get(slot, OFF) if slot in look.found.kills else state.vetoes.get(slot, OFF)
            model, _, variant = slot.partition("/")
            if latch.on and latch.seq > found.seq:
                writes.append(WordWrite(model, variant or "*", latch.seq, on=True))
            if latch.cleared > found.cleared:  # in a fresh word too: the next seq counts on from here
                writes.append(WordWrite(model, variant or "*", latch.cleared, on=False))
        return writes

    async def write(self, writes: Iterable[WordWrite]) -> bool:
        """Make the writes, in order after all earlier ones; False if they failed or take too long."""
        todo = list(writes)
        if not todo:
            return True
        job = asyncio.get_running_loop().run_in_executor(self._thread, self._write, todo)
        try:
            await asyncio.wait_for(asyncio.shield(job), WRITE_PATIENCE_S)
        except (OSError, TimeoutError) as error:
            log.error("the control word could not be written, trying again: %r", error)
            return False
        return True

    def close(self) -> None:
        """Close the word after the writes that are under way, without waiting for them."""
        self._thread.submit(self._word.close)
        self._thread.shutdown(wait=False)

    def _write(self, writes: list[WordWrite]) -> None:
        for write in writes:
            key = slot_key(write.model, write.variant)
            if write.on:
                now = self._word.latch(key)
                # A seq names one kill: a word that has seen it, even cleared, is not to see it again.
                if now is None or now.seq < write.seq:
                    self._word.latch_on(key, write.seq)
            else:
                self._word.latch_off(key, write.seq)
