"""What the documentation tests read: the repository's files and the README taken apart."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\[[^\]]*\]\(([^()\s]+)(?:\s+\"[^\"]*\")?\)|<img[^>]*\ssrc=\"([^\"]+)\"")
_SKIPPED = {".git", ".venv", ".canarium", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis", "__pycache__"}


def files() -> list[Path]:
    """Every file that belongs to the repository (what Git tracks, or in an export what lies there)."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode == 0 and listed.stdout:
        found = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    else:
        found = [path for path in ROOT.rglob("*") if not _SKIPPED & set(path.relative_to(ROOT).parts)]
    return sorted(path for path in found if path.is_file())


def markdown() -> list[Path]:
    return [path for path in files() if path.suffix == ".md"]


def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(text: str, *languages: str) -> list[str]:
    """Bodies of the fenced code blocks in one of these languages; of all without any."""
    return [body for language, body in _FENCE.findall(text) if not languages or language in languages]


def code(text: str) -> str:
    """Everything set as code: blocks and spans, one a line."""
    return "\n".join(blocks(text) + _SPAN.findall(_FENCE.sub("", text)))


def spans(text: str) -> list[str]:
    """Inline code outside of blocks."""
    return _SPAN.findall(_FENCE.sub("", text))


def links(text: str) -> list[str]:
    """Targets of links and images outside of code blocks."""
    return [link or image for link, image in _LINK.findall(_FENCE.sub("", text))]


def anchors(text: str) -> set[str]:
    """The anchors of a document's headings, as code hosts make them."""
    found: dict[str, int] = {}
    names = set()
    for heading in re.findall(r"^#+ +(.+?) *#*$", _FENCE.sub("", text), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", heading).lower()).replace(" ", "-")
        count = found.get(slug, 0)
        found[slug] = count + 1
        names.add(f"{slug}-{count}" if count else slug)
    return names


def commands(text: str) -> list[str]:
    """Shell commands of the `sh` and `bash` blocks: continued lines joined, comments and prompts dropped."""
    lines = []
    for block in blocks(text, "sh", "bash", "shell", "console"):
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            line = re.sub(r"(^|\s)#.*$", "", line).strip().removeprefix("$ ")
            if line:
                lines.append(line)
    return lines


def words_of(line: str) -> list[str]:
    """A command's words; a quotation that goes on in the next line is split at spaces."""
    try:
        return shlex.split(line)
    except ValueError:
        return line.split()
