"""Make the example's data from the UCI Statlog (Shuttle) data set.

    python deployments/examples/iot/prepare.py [--package FOLDER] [--out FILE]

The rows come from the PyPI package `river` 0.26.1, fetched by `pip download` into a temporary folder unless an unpacked
copy is given. Nothing is changed but the names of the labels and the split, which is drawn from a hash of the nine
readings, so that equal rows lie in one split. The output is byte for byte the same on every run.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "river==0.26.1"
FILE = "river/datasets/shuttle.csv.gz"
COLUMNS = [f"f{number}" for number in range(1, 10)]
LABELS = ("normal", "anomaly")
#: Shares of the splits in 1/100 of the hash range, in order.
SPLITS = (("train", 50), ("calibration", 15), ("validation", 10), ("test", 25))


def fetch(folder: Path) -> bytes:
    """The package's data file."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    try:
        subprocess.run(command, check=True, timeout=600)
    except (OSError, subprocess.SubprocessError) as error:
        sys.exit(f"cannot fetch {PACKAGE} with pip ({error}); unpack it yourself and pass --package FOLDER")
    with zipfile.ZipFile(next(folder.glob("river-*.whl"))) as wheel:
        return wheel.read(FILE)


def split_of(readings: list[str]) -> str:
    """The split of a row, from a hash of its readings."""
    at = int.from_bytes(hashlib.sha256(",".join(readings).encode()).digest()[:8], "big") % 100
    for name, share in SPLITS:
        if at < share:
            return name
        at -= share
    raise AssertionError("the shares add up to 100")


def rows(packed: bytes) -> Iterator[list[str]]:
    """The rows of the package's file, with label and split."""
    reader = csv.reader(io.StringIO(gzip.decompress(packed).decode()))
    header = next(reader)
    if header != [*COLUMNS, "anomaly"]:
        sys.exit(f"{FILE}: expected the columns {', '.join(COLUMNS)}, anomaly, got {', '.join(header)}")
    for line in reader:
        yield [*line[:-1], LABELS[int(line[-1])], split_of(line[:-1])]


def write(path: Path, found: Iterator[list[str]]) -> Counter[tuple[str, str]]:
    """Write the gzipped CSV file; gives the rows by split and label."""
    counts: Counter[tuple[str, str]] = Counter()
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, "label", "split"])
    for row in found:
        counts[row[-1], row[-2]] += 1
        writer.writerow(row)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.getvalue().encode(), 9, mtime=0))
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the IoT example's data.")
    parser.add_argument("--package", type=Path, help=f"folder of an unpacked {PACKAGE}")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data" / "shuttle.csv.gz")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        packed = (options.package / FILE).read_bytes() if options.package else fetch(Path(folder))
    counts = write(options.out, rows(packed))
    for split, _ in SPLITS:
        print(f"{split}: " + ", ".join(f"{counts[split, label]:,} {label}" for label in LABELS))


if __name__ == "__main__":
    main()
