"""What things may be called: models, variants, aliases, files, and the references made of them.

Every name that reaches a path goes through here, so that none leads out of the registry.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from serving.errors import RegistryError

LATEST = "latest"
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")
_ALIAS = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_NUMBER = re.compile(r"[1-9][0-9]{0,8}")
_REF = re.compile(r"([^/:]+)/([^/:]+)(?::([^/:]+))?")


class Ref(NamedTuple):
    """A reference taken apart: `which` is a revision, an alias, or None for the newest."""

    model: str
    variant: str
    which: int | str | None


def parse_ref(ref: str) -> Ref:
    """Split `MODEL/VARIANT[:REVISION|:ALIAS]`. Raises `RegistryError`."""
    match = _REF.fullmatch(ref)
    if match is None:
        raise RegistryError(f"{ref!r} is not MODEL/VARIANT:REVISION, such as moderation/int8:1")
    model, variant, which = match.groups()
    check_name("model", model)
    check_name("variant", variant)
    if which in (None, LATEST):
        return Ref(model, variant, None)
    if _NUMBER.fullmatch(which):
        return Ref(model, variant, int(which))
    if not _ALIAS.fullmatch(which):
        raise RegistryError(
            f"{ref!r}: revision {which!r} is neither a number from 1 nor '{LATEST}', and an alias starts with a "
            "lower-case letter"
        )
    return Ref(model, variant, which)


def parse_variant(text: str) -> tuple[str, str]:
    """Split `MODEL/VARIANT`. Raises `RegistryError`."""
    if ":" in text:
        raise RegistryError(f"{text!r}: give MODEL/VARIANT without a revision, such as moderation/int8")
    model, variant, _ = parse_ref(text)
    return model, variant


def check_name(what: str, name: str) -> None:
    """Raises `RegistryError` unless `name` may be that of a model or a variant."""
    if not _NAME.fullmatch(name):
        raise RegistryError(f"{what} name {name!r}: use lower-case letters, digits and '-', at most 40")


def check_alias(name: str) -> None:
    """Raises `RegistryError` unless `name` may be an alias: it must not look like a revision."""
    if name == LATEST:
        raise RegistryError(f"alias '{LATEST}' always means the newest revision and cannot be set; choose another name")
    if not _ALIAS.fullmatch(name):
        raise RegistryError(
            f"alias {name!r}: start with a lower-case letter and use those, digits and '-', at most 40, "
            "such as production"
        )


def check_file(name: str) -> None:
    """Raises `RegistryError` unless `name` may be a file of an artifact."""
    if not _FILE.fullmatch(name):
        raise RegistryError(f"file name {name!r}: use letters, digits, '.', '_' and '-', no folders")


def is_name(name: str) -> bool:
    return _NAME.fullmatch(name) is not None


def revision_of(filename: str) -> int | None:
    """The revision that a manifest file is named for (`3.json` -> 3); None if it is no manifest."""
    stem, dot, suffix = filename.partition(".")
    return int(stem) if dot and suffix == "json" and _NUMBER.fullmatch(stem) else None


def listed(names: Iterable[Any]) -> str:
    """Names or numbers for a message, in order."""
    return ", ".join(str(name) for name in sorted(names)) or "nothing"
