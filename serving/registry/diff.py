"""What differs between two manifests."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from serving.registry.manifest import File, Manifest

#: What every revision has of its own, and what the other parts of a difference say.
_NOT_COMPARED = ("schema", "model", "variant", "revision", "files")
_MEASURED = ("evaluation",)


class FileChange(msgspec.Struct, frozen=True):
    """A file that is not the same in both; None where it is not there."""

    name: str
    a: File | None
    b: File | None


class Change(msgspec.Struct, frozen=True):
    """A value that is not the same in both; None where there is none."""

    path: str
    a: Any
    b: Any


class Number(msgspec.Struct, frozen=True):
    """A measured number of either; `difference` is b - a, None where one is missing."""

    path: str
    a: float | None
    b: float | None
    difference: float | None


class Difference(msgspec.Struct, frozen=True):
    """Manifests `a` and `b` beside each other."""

    a: str
    b: str
    same_content: bool
    files: list[FileChange]
    fields: list[Change]
    evaluation: list[Number]


def difference(a: Manifest, b: Manifest) -> Difference:
    """Files and fields that differ, and every number of the evaluations, equal ones too."""
    values_a, values_b = dict(_flat(_plain(a), "")), dict(_flat(_plain(b), ""))
    sections = list(Manifest.__struct_fields__)
    paths = sorted({**values_a, **values_b}, key=lambda path: sections.index(_section(path)))
    fields, numbers = [], []
    for path in paths:
        one, other = values_a.get(path), values_b.get(path)
        if _section(path) in _MEASURED and all(value is None or _is_number(value) for value in (one, other)):
            numbers.append(Number(path, one, other, None if one is None or other is None else other - one))
        elif one != other:
            fields.append(Change(path, one, other))
    names = sorted({*a.files, *b.files})
    files = [FileChange(name, a.files.get(name), b.files.get(name)) for name in names]
    return Difference(a.ref, b.ref, a.content == b.content, [one for one in files if one.a != one.b], fields, numbers)


def _plain(manifest: Manifest) -> dict[str, Any]:
    document: dict[str, Any] = msgspec.to_builtins(manifest)
    return {key: value for key, value in document.items() if key not in _NOT_COMPARED}


def _flat(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every value that is neither an object nor a list, with its path such as `signature.inputs[0].name`."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            yield from _flat(inner, f"{path}[{index}]")
    else:
        yield path, value


def _section(path: str) -> str:
    """The field of the manifest that a path leads into."""
    return re.split(r"[.\[]", path, maxsplit=1)[0]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
