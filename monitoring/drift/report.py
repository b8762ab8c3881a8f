"""One report in a process of its own: `python -m monitoring.drift.report`, its job as JSON on standard input.

Evidently takes seconds and hundreds of megabytes to import, so that nothing else imports this module. Whoever starts it
ends it when it takes too long.
"""

from __future__ import annotations

import fcntl
import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from monitoring.drift.job import BUSY, DONE, FAILED, NO_LIBRARY, Column, Job, Summary, stamp_of

os.environ["DO_NOT_TRACK"] = "1"  # Evidently counts its uses otherwise

INSTALL = "drift reports need evidently, pandas and pyarrow: pip install 'canarium[reports]'"


def main() -> int:
    """Returns the exit status; what went wrong is one line on standard error."""
    os.nice(10)  # requests go first, always
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    out = Path(job.out)
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (out.parents[1] / ".lock").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            print("another report is being made, try again", file=sys.stderr)
            return BUSY
        try:
            write(out, *make(job))
        except ImportError as error:
            print(f"{INSTALL} ({error})", file=sys.stderr)
            return NO_LIBRARY
        except (OSError, ValueError) as error:
            print(error, file=sys.stderr)
            return FAILED
    return DONE


def make(job: Job) -> tuple[Summary, str]:
    """Compare, and render.

    Returns:
        the summary, and the HTML; "" if there are too few rows to show anything.

    Raises:
        ImportError: a library is not installed.
        OSError, ValueError: the reference or the rows cannot be used.
    """
    from monitoring.drift.distance import simplified
    from monitoring.drift.rows import arrays, compact, read_reference, read_rows

    folder = Path(job.payloads)
    compact(folder, job.until_ms)
    current = read_rows(folder, job.variant, job.version, job.since_ms, job.until_ms)
    rows = len(next(iter(current.values()))) if current else 0
    if rows < job.min_rows:
        return _summary(job, rows, 0, "no_data", f"{rows} sampled rows, under the {job.min_rows} of a report"), ""
    if not job.reference:
        sentence = (
            f"nothing to compare {rows} sampled rows with: the artifact has no reference; build it again "
            "with this version"
        )
        return _summary(job, rows, 0, "no_data", sentence, html=True), _render(current, None, {})
    reference = read_reference(Path(job.reference))
    expected = arrays(reference.columns)
    pairs = {name: simplified(values, current[name]) for name, values in expected.items() if name in current}
    if not pairs:
        raise ValueError(f"{job.reference}: has no feature of the sampled rows ({', '.join(current)})")
    before, after = ({name: pair[side] for name, pair in pairs.items()} for side in (0, 1))
    columns, html = _compare(job, before, after, rows)
    left_out = sorted(expected.keys() ^ current.keys())
    drifted = [column for column in columns if column.drifted]
    span = f"{rows} sampled rows of the last {(job.until_ms - job.since_ms) / 3_600_000:g} h"
    if drifted:
        named = ", ".join(f"{one.name} {one.score:.2f} ≥ {one.threshold:.2f}" for one in _worst(drifted)[:3])
        sentence = f"{len(drifted)} of {len(columns)} features of {span} are unlike the build's: {named}"
    else:
        worst = _worst(columns)[0]
        sentence = (
            f"none of {len(columns)} features of {span} is unlike the build's; "
            f"nearest is {worst.name} {worst.score:.2f} < {worst.threshold:.2f}"
        )
    word = "fail" if drifted else "pass"
    return _summary(job, rows, reference.rows, word, sentence, columns=columns, left_out=left_out, html=True), html


def _worst(columns: list[Column]) -> list[Column]:
    return sorted(columns, key=lambda column: -column.score / column.threshold)


def _compare(job: Job, before: Mapping[str, Any], after: Mapping[str, Any], rows: int) -> tuple[list[Column], str]:
    from monitoring.drift.distance import is_words, jensen_shannon, thresholds, wasserstein

    limits = thresholds(before, rows, false_alarm=job.false_alarm, least=job.least_distance)
    columns = []
    for name, values in before.items():
        words = is_words(values)
        distance = (jensen_shannon if words else wasserstein)(values, after[name])
        columns.append(Column(name, "jensenshannon" if words else "wasserstein", distance, limits[name]))
    return columns, _render(after, before, {column.name: column for column in columns})


def _render(current: Mapping[str, Any], reference: Mapping[str, Any] | None, columns: Mapping[str, Column]) -> str:
    """Evidently's page: its drift table, by our methods and thresholds; without a reference what the rows are like."""
    import pandas
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset, DataSummaryPreset

    from monitoring.drift.distance import is_words

    warnings.simplefilter("ignore")  # of numpy's, on columns without spread
    words = [name for name, values in current.items() if is_words(values)]
    definition = DataDefinition(
        numerical_columns=[name for name in current if name not in words], categorical_columns=words
    )
    frames = [pandas.DataFrame(dict(side)) for side in (current, reference) if side is not None]
    sets = [Dataset.from_pandas(frame, data_definition=definition) for frame in frames]
    preset: Any = DataSummaryPreset()
    if reference is not None:
        preset = DataDriftPreset(
            per_column_method={name: column.method for name, column in columns.items()},
            per_column_threshold={name: column.threshold for name, column in columns.items()},
            drift_share=int(1000 / len(columns)) / 1000,  # thresholds are for all columns together: one is enough
        )
    html: str = Report([preset]).run(*sets).get_html_str(as_iframe=False)
    return html


def _summary(
    job: Job,
    rows: int,
    reference_rows: int,
    verdict: str,
    sentence: str,
    *,
    columns: list[Column] | None = None,
    left_out: list[str] | None = None,
    html: bool = False,
) -> Summary:
    stamp = stamp_of(job.until_ms)
    return Summary(
        job.model,
        job.variant,
        stamp,
        job.since_ms,
        job.until_ms,
        rows,
        reference_rows,
        verdict,
        f"{job.variant}: {sentence}",
        columns or [],
        left_out or [],
        f"{stamp}.html" if html else "",
        job.version,
    )


def write(out: Path, summary: Summary, html: str) -> None:
    """The page first, then the summary, by which it is found. Raises `OSError`."""
    if html:
        _write(out / summary.html, html.encode())
    _write(out / f"{summary.stamp}.json", msgspec.json.format(msgspec.json.encode(summary), indent=2))


def _write(path: Path, data: bytes) -> None:
    unfinished = path.with_name(f".{path.name}.new")
    with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(data)
    unfinished.rename(path)


if __name__ == "__main__":
    sys.exit(main())
