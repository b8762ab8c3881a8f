"""Measure one candidate on the validation split, through the serving code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from serving.build import metrics
from serving.build.cache import Tick, write_json
from serving.build.evaluate import infer, mixed_batches, neighbour_delta, percentiles
from serving.build.evidence.slices import compare_slices, lowest_accuracy
from serving.build.evidence.subject import masks_of
from serving.build.examples import read_examples
from serving.build.interface import draft, pipeline_folder
from serving.runtimes.base import open_session
from serving.runtimes.pipeline import Pipeline

_RUNS, _RUNS_MANY = 120, 40
SPLIT = "validation"


def measure_trial(out: Path, needs: Mapping[str, Path], parameters: Mapping[str, Any], tick: Tick) -> None:
    """Write `trial.json` and, unless it cannot run, `logits.npy` [n, C].

    A candidate that cannot be loaded or run here is no error of the build: `failed` says why.

    Args:
        needs: `data`, `model`, and where it stands in for another, `judge`: that one's trial. Each further file of the
            artifact is a need of its own.
        parameters: those of `draft`, with `runtime` and `mode` of the session.
    """
    manifest = draft(parameters, 1.0)
    pipeline = Pipeline(manifest, pipeline_folder(manifest, needs))
    examples = read_examples(needs["data"], SPLIT, parameters["labels"])
    found: dict[str, Any] = {"split": SPLIT, "rows": len(examples), "failed": ""}
    try:
        session = open_session(
            manifest, needs["model"], runtime=parameters["runtime"], threads=1, mode=parameters["mode"]
        )
        logits = infer(pipeline, session, examples)
        ready = [pipeline.preprocess(batch) for batch in mixed_batches(examples, 1, 64)]
        spent = percentiles(lambda index: session.run(ready[index % len(ready)]), _RUNS)
        many = [pipeline.preprocess(batch) for batch in mixed_batches(examples, 16, _RUNS_MANY)]
        spent_many = percentiles(lambda index: session.run(many[index % len(many)]), _RUNS_MANY)
        change = neighbour_delta(pipeline, session, examples, logits) / max(float(logits.std()), 1e-12)
        session.close()
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else ""
        write_json(out / "trial.json", {**found, "failed": f"cannot run here: {type(error).__name__}: {reason}"})
        return
    np.save(out / "logits.npy", logits)
    judge = np.load(needs["judge"] / "logits.npy") if "judge" in needs else logits
    right, judged = logits.argmax(axis=1) == examples.classes, judge.argmax(axis=1) == examples.classes
    masks = masks_of(read_examples(needs["data"], "train", parameters["labels"]), examples, parameters["labels"])
    lowest = lowest_accuracy(compare_slices(masks, right, judged))
    write_json(
        out / "trial.json",
        {
            **found,
            "accuracy": float(right.mean()),
            "slice": {"name": lowest[0], "accuracy": lowest[1]} if lowest is not None else None,
            "disagreement": float((logits.argmax(axis=1) != judge.argmax(axis=1)).mean()),
            "mean_kl": metrics.mean_kl(judge, logits),
            "neighbour_change": change,
            "bytes": (needs["model"] / manifest.entry).stat().st_size,
            "latency_ms": {"batch_1": spent, "batch_16": spent_many},
        },
    )
