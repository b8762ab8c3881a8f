"""What runs beside the records, and what follows from it: drift reports and golden rows.

Filled by who runs them, read by all else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import msgspec

from monitoring.config import MonitorModel
from monitoring.drift.job import REPORTS, Summary
from monitoring.verdicts import Verdict, iso

Key = tuple[str, str]  # (model, variant)
#: What can become of a report; `killed` because it took too long.
REPORT_RESULTS = ("done", "failed", "killed")
MS = 1_000_000

#: Share of the golden rows that may stay without an answer before a run says nothing.
UNANSWERED_SHARE = 0.1


class GoldenResult(msgspec.Struct, frozen=True):
    """One run over the golden rows of a variant.

    Attributes:
        rows: asked; `answered` of them, `labelled` of those with a known class, `right` of those with that class.
        stored: answered rows whose answer was stored when the variant was built; `flips` of them have another class
            now, `equal` the same probabilities to the bit.
        same_isa: it was built on a processor with the same instruction sets.
        floor: least share of right answers.
        flips_max: most share of flips.
    """

    at_ms: int
    rows: int
    answered: int
    labelled: int
    right: int
    stored: int
    flips: int
    equal: int
    same_isa: bool
    floor: float
    flips_max: float

    @property
    def accuracy(self) -> float | None:
        return self.right / self.labelled if self.labelled else None


class GoldenRun(msgspec.Struct, frozen=True):
    """A result as it is stored: with the version that was asked, and the file of the rows."""

    version: int
    file: str
    result: GoldenResult


class Beside:
    """The newest result of each variant, and how the attempts ended."""

    def __init__(self) -> None:
        self.drift: dict[Key, Summary] = {}
        self.report_results: Counter[str] = Counter(dict.fromkeys(REPORT_RESULTS, 0))
        self.golden: dict[Key, GoldenResult] = {}
        self.golden_requests: Counter[tuple[str, str, str]] = Counter()  # model, variant, ok | error

    def golden_state(self, models: Mapping[str, MonitorModel]) -> dict[str, dict[str, Any]]:
        """The results of golden rows by model and variant, in plain values: nobody may wait for the next run."""
        state: dict[str, dict[str, Any]] = {}
        for (name, variant), result in self.golden.items():
            model = models[name]
            run = GoldenRun(model.variants[variant].version, model.golden_file(variant), result)
            state.setdefault(name, {})[variant] = msgspec.to_builtins(run)
        return state

    def load_golden(self, state: Mapping[str, Any], models: Mapping[str, MonitorModel]) -> None:
        """Take over what would still be asked: the same rows of the same artifact, held to the limits of now.

        Raises `ValueError` if it is damaged.
        """
        for name, runs in msgspec.convert(state, dict[str, dict[str, GoldenRun]]).items():
            for variant, run in runs.items():
                model = models.get(name)
                if model is None or not model.golden.every_s or variant not in model.variants:
                    continue
                if (run.version, run.file) != (model.variants[variant].version, model.golden_file(variant)):
                    continue
                limits = {"floor": model.golden.floor, "flips_max": model.golden.flips_max}
                self.golden[name, variant] = msgspec.structs.replace(run.result, **limits)

    def verdicts(self, model: str, baseline: str, now_ms: int) -> list[Verdict]:
        """One of each variant with a result: `golden`, `input_drift`.

        A report speaks of now for as long as the window is that it looked at.
        """
        answers, inputs = sorted(self.golden.items()), sorted(self.drift.items())
        return [
            *(golden_verdict(key[1], result, baseline) for key, result in answers if key[0] == model),
            *(
                drift_verdict(summary)
                for key, summary in inputs
                if key[0] == model and now_ms - summary.until_ms <= summary.until_ms - summary.since_ms
            ),
        ]


def described(summary: Summary) -> dict[str, Any]:
    """A report as the API lists it."""
    base = f"/v1/{REPORTS}/{summary.model}/{summary.variant}/{summary.stamp}"
    return {
        "model": summary.model,
        "variant": summary.variant,
        "at": iso(summary.until_ms * MS),
        "since": iso(summary.since_ms * MS),
        "rows": summary.rows,
        "verdict": summary.verdict,
        "sentence": summary.sentence,
        "drifted": [column.name for column in summary.columns if column.drifted],
        "html": f"{base}.html" if summary.html else None,
        "json": f"{base}.json",
    }


def drift_verdict(summary: Summary) -> Verdict:
    """What a report says, as a verdict; its action is an alert at most."""
    drifted = [column for column in summary.columns if column.drifted]
    shown = described(summary)
    return Verdict(
        guard="input_drift",
        variant=summary.variant,
        verdict=summary.verdict,
        action="alert" if summary.verdict == "fail" else "none",
        sentence=summary.sentence,
        at=shown["at"],
        statistic={
            "observations": summary.rows,
            "reference_rows": summary.reference_rows,
            "features": len(summary.columns),
            "events": len(drifted),
            "scores": {column.name: round(column.score, 4) for column in summary.columns},
            "thresholds": {column.name: round(column.threshold, 4) for column in summary.columns},
            "report": shown["html"],
        },
    )


def golden_verdict(variant: str, result: GoldenResult, baseline: str) -> Verdict:
    """What a run over the golden rows says. A candidate that fails is paused; of the baseline it is an alert."""
    accuracy = result.accuracy
    few = result.answered < (1 - UNANSWERED_SHARE) * result.rows
    low = accuracy is not None and accuracy < result.floor
    changed = result.stored > 0 and result.flips > result.flips_max * result.stored
    word = "inconclusive" if few else "fail" if low or changed else "pass"
    parts = [f"{variant} answered {result.answered} of {result.rows} golden rows"]
    if accuracy is not None:
        held = f", {'under' if low else 'not under'} the floor of {_percent(result.floor)}" if result.floor else ""
        parts.append(f"{result.right} of {result.labelled} right ({_percent(accuracy)}{held})")
    if result.stored:
        parts.append(
            f"{result.flips} of another class than when it was built"
            f"{f' (over the {_percent(result.flips_max)} allowed)' if changed else ''}"
        )
        if result.same_isa:
            parts.append(f"{result.equal} of {result.stored} equal to the bit")
    action = "none" if word != "fail" else "alert" if variant == baseline else "pause"
    return Verdict(
        guard="golden",
        variant=variant,
        verdict=word,
        action=action,
        sentence=", ".join(parts),
        at=iso(result.at_ms * MS),
        statistic={
            "observations": result.answered,
            "events": result.flips,
            "accuracy": accuracy,
            **{name: value for name, value in msgspec.structs.asdict(result).items() if name != "at_ms"},
        },
    )


def _percent(share: float) -> str:
    return f"{share * 100:.1f} %"
