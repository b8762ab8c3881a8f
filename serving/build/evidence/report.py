"""The report's sections on slices, perturbed inputs, calibration, memory, overflow and the calibration rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from serving.build.evidence.perturb import more_fragile
from serving.build.evidence.slices import LEAST_ROWS
from serving.build.plan import Part


def parts(document: Mapping[str, Any], temperatures: str) -> list[Part]:
    """From the report's JSON form: `evidence` (variant -> evidence.json), `variants`, `calibration_drift`, `search`.

    Args:
        temperatures: where they come from (see `Plan`).
    """
    evidence = document["evidence"]
    drift = document["calibration_drift"]
    found = [Part("Calibration data", _drift(drift))] if drift else []
    if evidence:
        found += [
            Part("Slices", _slices(evidence)),
            Part("Perturbed inputs", _perturbations(evidence)),
            Part("Calibration before and after", _calibration(document, temperatures)),
            Part("Memory and overflow", footprint(evidence)),
        ]
        if noise := _noise(evidence):
            found.append(Part("Quantization noise", noise))
    return found


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def _points(change: float) -> str:
    return f"{100 * change:+.1f}"


def _slices(evidence: Mapping[str, Any]) -> list[str]:
    rows, singled = [], []
    trusted = next(iter(evidence))
    for name, found in evidence.items():
        compared = found["slices"]
        worst, lowest = compared["worst"], compared["lowest"]
        if worst is None:
            continue
        row = [name, *_lowest(lowest), _points(compared["overall_change"])]
        if name == trusted:  # it loses nothing against itself
            rows.append([*row, *("–",) * 4])
            continue
        low, high = worst["change_ci"]
        rows.append(
            [
                *row,
                worst["slice"],
                f"{worst['accuracy']:.4f}",
                f"{_points(worst['change'])} ({_points(low)} to {_points(high)})",
                "yes" if worst["singled_out"] else "no",
            ]
        )
        if worst["singled_out"]:
            singled.append(f"{name} ({worst['slice']})")
    if not rows:
        return [f"No slice has {LEAST_ROWS} rows: nothing can be said of any."]
    verdict = (
        f"One slice clearly pays more than the rest: {', '.join(singled)}."
        if singled
        else "No slice can be shown to lose more than all rows together."
    )
    head = [
        *("variant", "lowest slice", "rows", "accuracy there (interval)", "change overall"),
        *("loses most", "accuracy there", "change there (interval)", "singled out"),
    ]
    return [
        *_table(head, rows),
        "",
        f"{verdict} Lowest: the slice with the lowest accuracy, whoever else is as low there. Loses most: changes of "
        "accuracy against the trusted variant in percentage points. Both slices were picked after looking, so their "
        "95 % intervals hold for all slices at once (Bonferroni); slices are the classes and terciles cut on the "
        f"training rows, of at least {LEAST_ROWS} rows.",
    ]


def _lowest(found: Mapping[str, Any]) -> list[str]:
    low, high = found["accuracy_ci"]
    return [found["slice"], str(found["rows"]), f"{found['accuracy']:.4f} ({low:.4f}–{high:.4f})"]


def _perturbations(evidence: Mapping[str, Any]) -> list[str]:
    names = list(next(iter(evidence.values()))["perturbations"])
    rows, fragile = [], []
    for variant, found in evidence.items():
        each = found["perturbations"]
        hostile = found["hostile"]
        cells = [f"{each[name]['flip_rate']:.1%} ({each[name]['differs_from_teacher']:.1%})" for name in names]
        cells.append(f"{hostile['broken_rate']:.1%}" if hostile else "–")
        rows.append([variant, *cells])
        fragile += [f"{variant} under {name}" for name in more_fragile(each)]
    tried = next((found["hostile"] for found in evidence.values() if found["hostile"]), None)
    verdict = (
        f"Clearly more fragile than the trusted variant: {', '.join(fragile)}."
        if fragile
        else "No variant is clearly more fragile than the trusted one."
    )
    lines = [
        *_table(["variant", *names, "worst of several"], rows),
        "",
        f"{verdict} Share of rows whose answer a perturbation changes, in brackets the share on which the perturbed "
        "answers differ from the trusted variant's (exact sign tests, Bonferroni).",
    ]
    if tried:
        lines.append(
            f"Last column: right answers that at least one of {tried['tries']} random draws turns wrong, over "
            f"{tried['rows']} rows; a determined attacker does better, so it is a lower bound."
        )
    return [*lines, *_attacks(evidence)]


def _attacks(evidence: Mapping[str, Any]) -> list[str]:
    attacks = {name: found["adversarial"] for name, found in evidence.items() if found["adversarial"]}
    if not attacks:
        return []
    rows = [
        [
            name,
            f"{one['wrong_as_they_are']} of {one['rows']}",
            *(_distance(one[key]) for key in ("tenth_distance", "median_distance", "trusted_median_distance")),
            f"{one['p_value']:.2g}",
        ]
        for name, one in attacks.items()
    ]
    first = next(iter(attacks.values()))
    head = ["variant", "wrong as they are", "a tenth by", "half by", "half of the trusted variant's by", "p"]
    return [
        "",
        *_table(head, rows),
        "",
        f"An attacker who sees answers alone ({first['attack']}, adversarial-robustness-toolbox {first['library']}): "
        "how far evenly spread test rows were moved until the answer was wrong, Euclidean, in standard deviations of "
        "the features. p: Wilcoxon's signed-rank test, row by row, against the trusted variant.",
    ]


def _distance(value: float | None) -> str:
    return "not found" if value is None else f"{value:.2f}"


def _calibration(document: Mapping[str, Any], temperatures: str) -> list[str]:
    rows = []
    for name, found in document["evidence"].items():
        before, measured = found["uncalibrated"], document["variants"][name]["measured"]
        rows.append(
            [
                name,
                f"{document['variants'][name]['temperature'] or 1.0:.3f}",
                f"{before['ece_debiased']:.4f} → {measured['ece_debiased']:.4f}",
                f"{before['brier']:.4f} → {measured['brier']:.4f}",
                f"{before['nll']:.4f} → {measured['nll']:.4f}",
            ]
        )
    chosen = " What was searched was chosen on validation." if document["search"] else ""
    return [
        *_table(["variant", "temperature", "ECE debiased", "Brier", "log loss (nats)"], rows),
        "",
        f"{temperatures}, measured here on test.{chosen}",
    ]


def footprint(evidence: Mapping[str, Any]) -> list[str]:
    """Lines on what each variant takes and may overflow: variant -> a dictionary with `memory` and `saturation`."""
    rows = []
    for name, found in evidence.items():
        memory, audit = found["memory"], found["saturation"]
        clipping = "–"
        if audit and audit["pairs"]:
            clipping = f"{audit['possible']:,} of {audit['pairs']:,}"
        megabytes = [f"{memory[key] / 1e6:.1f} MB" for key in ("model_bytes", "process_bytes")] if memory else ["–"] * 2
        rows.append([name, *megabytes, clipping])
    return [
        *_table(["variant", "memory of the model", "whole process", "pairs that could clip without VNNI"], rows),
        "",
        "Resident memory of a process of its own with one thread, after 20 batches of 16. On x86 without VNNI two "
        "8-bit products are added in 16 bits and clipped: 0 pairs is a proof that this cannot happen, more says where "
        "an INT8 variant may answer differently there.",
    ]


def _noise(evidence: Mapping[str, Any]) -> list[str]:
    audited = {name: found["activations"] for name, found in evidence.items() if found["activations"]}
    if not audited:
        return []
    rows = []
    for name, one in audited.items():
        lowest = min(one["layers"].items(), key=lambda layer: layer[1], default=None)
        rows.append(
            [
                name,
                f"{one['tensors']}",
                f"{one['share']:.3%}",
                f"{one['sqnr_db']:.1f} dB" if one["sqnr_db"] is not None else "–",
                f"{lowest[1]:.1f} dB ({lowest[0]})" if lowest else "–",
            ]
        )
    head = ["variant", "quantized tensors", "outside their ranges", "own rounding", "lowest against the source"]
    return [
        *_table(head, rows),
        "",
        f"Signal-to-quantization-noise ratios of the activations on {next(iter(audited.values()))['rows']} test rows. "
        "Own rounding: what 8 bits cost each tensor, averaged. Against the source: with all that was rounded before "
        "it, for the tensor that suffers most.",
    ]


def _drift(found: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, each in found["split"].items():
        count = each["rows"]["calibration"]
        lines += _shifts(f"{name}: {count} calibration rows", each)
        chosen = found["ranges"].get(name)
        if chosen is None:
            lines.append(f"- {name}: too few of them give INT8 its ranges to be compared.")
        elif chosen["rows"]["calibration"] < count:
            lines += _shifts(f"{name}: the {chosen['rows']['calibration']} of them that INT8 ranges come from", chosen)
    return lines or ["- The inputs are of a kind that is not compared."]


def _shifts(who: str, each: Mapping[str, Any]) -> list[str]:
    classifier = each["classifier"]
    lines = [
        f"- {who} against {each['rows']['train']} training rows; a classifier that tries to tell them apart reaches an "
        f"area under the curve of {classifier['auc']:.3f} (p = {classifier['p_value']:.2g}; 0.5 is chance)."
    ]
    if each["shifted"]:
        return lines + [f"  - **shifted**: {what}" for what in each["shifted"]]
    most = max(each["features"], key=lambda feature: each["features"][feature]["psi"])
    return [*lines, f"  - No shift found; the largest stability index is {each['features'][most]['psi']:.3f} ({most})."]
