"""Does the candidate fail more often than its share of the traffic explains?"""

from __future__ import annotations

from typing import Any, ClassVar

from monitoring.detectors.base import BatchRace, Detector

#: Over this share of the traffic there is no other arm to race against, and the candidate's own
#: error rate is held to ALONE_LIMIT instead.
ALONE_SHARE = 0.9
ALONE_LIMIT = 0.10
#: Requests that a candidate kept waiting within so long of each other (ns) are one event.
SPELL_NS = 500_000_000


class Errors(Detector):
    """A race of error events between the candidate and the baseline.

    Assumption: units fall to the arms by a hash, so trouble common to both strikes the candidate
    with the share w of its traffic; a batch that failed together is one event (see `BatchRace`), and
    so is what one stall of the candidate's worker kept waiting: only candidates have the tight
    budget of a fallback, so the same stall of the baseline's worker shows no error.
    Observation: at each error event X = 1{it came from the candidate}, in {0, 1}.
    Formula: with odds of failing at most r times the baseline's, E[X | past] <= w r / (w r + 1 - w).
    When w > 0.9 there is hardly another arm: then each of the candidate's requests is an
    observation, X = 1{error}, against E[X | past] <= 0.10. Which of the two bets is placed is known
    beforehand, so their product is one e-process. Passes by the mirrored test of the candidate's own
    error rate against `budget`: each of its requests is an observation, except that what one stall
    kept waiting is one error here too, as long as the candidate answers nothing meanwhile. A stall of
    the whole machine fails everything in flight at once and says little about the rate; stalls of the
    candidate alone are for the race to find.
    Source: Lindon & Malek, "Anytime-valid inference for multinomial count data" (NeurIPS 2022), for
    the race; betting.py for the evidence.

    Args:
        ratio: tolerated ratio r of the error odds, >= 1.
        budget: error rate under which the candidate passes, in (0, 1).

    >>> guard = Errors(ratio=1.25, alpha=0.002)
    >>> next(n for n in range(1, 100) if guard.observe(from_candidate=True, error=True, share=0.05))
    4
    >>> round(guard.log_evidence, 2), round(guard.log_threshold, 2)
    (8.5, 6.21)
    """

    name: ClassVar[str] = "errors"
    FIELDS: ClassVar[tuple[str, ...]] = (
        *Detector.FIELDS, "race", "_clean", "_clean_alone", "candidate_requests", "candidate_errors", "last_limit",
        "_spell_ns", "_silent",
    )  # fmt: skip
    NULL: ClassVar[tuple[str, ...]] = (*Detector.NULL, "ratio", "budget")

    def __init__(self, ratio: float = 1.25, budget: float = 0.01, **budgets: float) -> None:
        self.ratio = ratio
        self.budget = budget
        self.race = BatchRace()
        super().__init__(**budgets)

    def reset(self) -> None:
        super().reset()
        self.race.reset()
        self._clean = 0
        self._clean_alone = 0
        self.candidate_requests = 0
        self.candidate_errors = 0
        self.last_limit = 0.0
        self._spell_ns = -SPELL_NS
        self._silent = False  # no answer of the candidate since the spell began

    def observe(
        self,
        from_candidate: bool,
        error: bool,
        share: float,
        batch_key: int = 0,
        *,
        waited: bool = False,
        at_ns: int = 0,
    ) -> bool:
        """One live request of either arm; True when it makes the detector fail.

        Args:
            share: the candidate's configured share of the two arms' traffic, in [0, 1].
            waited: the error is one of time: a timeout, or no capacity.
            at_ns: when it was answered, nanoseconds of the monotonic clock; needed with `waited`.
        """
        alone = share > ALONE_SHARE
        if from_candidate:
            self.candidate_requests += 1
        if not error:
            self.race.count(from_candidate, batch_key)
            if from_candidate:
                self._silent = False
                self._clean += 1
                self._clean_alone += alone
            return False
        stalled = waited and from_candidate and 0 <= at_ns - self._spell_ns < SPELL_NS
        if waited and from_candidate and not stalled:
            self._spell_ns = at_ns
        excused, self._silent = stalled and self._silent, self._silent or (waited and from_candidate and not stalled)
        return self._error(from_candidate, share, batch_key, alone, stalled, excused)

    def _error(
        self, from_candidate: bool, share: float, batch_key: int, alone: bool, stalled: bool, excused: bool
    ) -> bool:
        expected = self.race.share(share)
        self.race.count(from_candidate, batch_key)
        self._settle()
        self.candidate_errors += from_candidate
        if from_candidate and not excused:
            self._for.update(1.0, self.budget)
        if not self.race.first(batch_key) or (stalled and not alone):
            return False
        if alone and not from_candidate:
            return False
        self.last_limit = ALONE_LIMIT if alone else _odds_share(expected, self.ratio)
        self.observations += 1
        self.events += from_candidate
        self._against.update(1.0 if from_candidate else 0.0, self.last_limit)
        return self._judge()

    @property
    def no_data(self) -> bool:
        return self.candidate_requests == 0

    def settle(self) -> None:
        """Work the requests answered well so far into the evidence."""
        self._settle()
        self._judge()

    def _settle(self) -> None:
        self._for.update(0.0, self.budget, self._clean)
        self._against.update(0.0, ALONE_LIMIT, self._clean_alone)
        self._clean = self._clean_alone = 0

    def numbers(self) -> dict[str, Any]:
        return {
            "share_limit": round(self.last_limit, 6),
            "candidate_requests": self.candidate_requests,
            "candidate_errors": self.candidate_errors,
        }


def _odds_share(share: float, ratio: float) -> float:
    weighted = share * ratio
    return weighted / (weighted + 1.0 - share) if share < 1.0 else 1.0
