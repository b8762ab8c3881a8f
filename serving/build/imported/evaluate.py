"""A streaming detector's evaluation, through the serving code: every clip from its beginning, its state given back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from serving.build.cache import BuildError, Tick, write_json
from serving.build.cpu import cpu_info
from serving.build.evaluate import percentiles, quality
from serving.build.evidence import memory, saturation
from serving.build.imported.clustered import by_clip
from serving.build.imported.sound import read_clips
from serving.build.imported.stream import feeds
from serving.build.interface import draft
from serving.build.rows import filled, spread
from serving.runtimes.base import Session, open_session
from serving.runtimes.pipeline import Pipeline

_ALONE, _BATCH = 8, 16


def evaluate_stream(out: Path, needs: Mapping[str, Path], parameters: Mapping[str, Any], tick: Tick) -> None:
    """Measure on the test split; write `evaluation.json` and `scores.npy` [clips, windows].

    `needs["teacher"]`, where given, is the evaluation of the model that this one is compared with. Windows of one clip
    are alike, so intervals and tests are over clips.
    """
    manifest = draft(parameters, 1.0)
    session = open_session(manifest, needs["model"], runtime="onnxruntime", threads=1)
    pipeline = Pipeline(manifest, needs["model"])
    clips = read_clips(needs["data"], "test")
    threshold, score = parameters["stream"]["threshold"], parameters["stream"]["score"]
    scores = scores_of(pipeline, session, clips.windows, parameters)
    np.save(out / "scores.npy", scores)
    tick(1, 4, "alone")
    few = spread(len(scores), _ALONE)
    alone = [scores_of(pipeline, session, clips.windows[at : at + 1], parameters)[0] for at in few.tolist()]
    tick(2, 4, "memory")
    feed, _ = next(feeds(clips.windows[filled(len(scores), _BATCH)], parameters["stream"], parameters["inputs"]))
    ready = pipeline.preprocess(feed)
    taken = memory.measure(manifest, needs["model"], runtime="onnxruntime", inputs=ready, scratch=out)
    tick(3, 4, "latency")
    judge = np.load(needs["teacher"] / "scores.npy") if "teacher" in needs else scores
    answers, judged = (values >= threshold for values in (scores, judge))
    right = answers == clips.classes
    flat = scores.ravel().astype(np.float64)
    evaluation = {
        "split": "test",
        "clips": len(clips.classes),
        **quality(
            np.stack((1 - flat, flat), axis=1),
            answers.ravel().astype(np.int64),
            clips.classes.ravel(),
            judged.ravel().astype(np.int64),
            parameters["labels"],
        ),
        **by_clip(right, judged == clips.classes, answers != judged),
        "score_difference": {
            "mean": float(np.abs(scores - judge).mean()),
            "p99": float(np.quantile(np.abs(scores - judge), 0.99)),
            "max": float(np.abs(scores - judge).max()),
        },
        "batch_neighbour_delta": float(np.abs(np.stack(alone) - scores[few]).max()),
        "latency_ms": _latency(pipeline, session, clips.windows, parameters),
        "bytes": (needs["model"] / manifest.entry).stat().st_size,
        "model_bytes": (needs["model"] / manifest.entry).stat().st_size,
        "memory": msgspec.to_builtins(taken) if taken else None,
        "saturation": saturation.audit(needs["model"] / manifest.entry),
        "score": score,
        "cpu": cpu_info(),
    }
    write_json(out / "evaluation.json", evaluation)


def scores_of(pipeline: Pipeline, session: Session, windows: np.ndarray, parameters: Mapping[str, Any]) -> np.ndarray:
    """Scores float32 [clips, windows]; every step must pass the server's own check.

    Args:
        windows: float32 [clips, windows, samples].
        parameters: `stream` and `inputs`, as `feeds` takes them.
    """
    found = []
    for step, (feed, answer) in enumerate(feeds(windows, parameters["stream"], parameters["inputs"])):
        answer.update(session.run(pipeline.preprocess(feed)))
        fault = pipeline.check(answer, len(windows))
        if fault:
            raise BuildError(f"window {step}: {fault}")
        found.append(answer[parameters["stream"]["score"]].reshape(-1))
    return np.stack(found, axis=1)


def _latency(
    pipeline: Pipeline, session: Session, windows: np.ndarray, parameters: Mapping[str, Any]
) -> dict[str, Any]:
    """Milliseconds of one step of one thread: the session alone, and with what is around it."""
    measured: dict[str, Any] = {"threads": 1}
    for size in (1, _BATCH):
        feed, _ = next(feeds(windows[filled(len(windows), size)], parameters["stream"], parameters["inputs"]))

        def bare(index: int, feed: dict[str, np.ndarray] = feed) -> None:
            session.run(feed)

        def whole(index: int, feed: dict[str, np.ndarray] = feed) -> None:
            pipeline.postprocess(session.run(pipeline.preprocess(feed)))

        measured[f"batch_{size}"] = percentiles(bare, 200)
        measured[f"batch_{size}_whole"] = percentiles(whole, 200)
    return measured
