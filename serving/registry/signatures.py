"""Does an artifact take and give what another does? Clients of a model do not know beforehand which one answers."""

from __future__ import annotations

from collections.abc import Iterable

from serving.registry.manifest import Signature, TensorSpec


def unlike(own: Signature, baseline: Signature) -> str:
    """The first tensor that breaks what the baseline's clients rely on, in words; empty if there is none.

    Whatever the baseline accepts must be accepted, so an input may only be freer, and no other may be needed. Whatever
    is given must be what the baseline could give, so an output may only be narrower, and others may stand beside it.
    """
    ours, theirs = _named(own.inputs), _named(baseline.inputs)
    for name in {**theirs, **ours}:
        if not _within(theirs.get(name), ours.get(name)):
            return _said("input", name, ours.get(name), theirs.get(name))
    ours, theirs = _named(own.outputs), _named(baseline.outputs)
    for name in theirs:
        if not _within(ours.get(name), theirs.get(name)):
            return _said("output", name, ours.get(name), theirs.get(name))
    return ""


def _within(narrow: TensorSpec | None, wide: TensorSpec | None) -> bool:
    """Whether each tensor of the one kind is of the other as well, with its rows on the same axis."""
    return (
        narrow is not None
        and wide is not None
        and narrow.datatype == wide.datatype
        and narrow.batch_axis == wide.batch_axis
        and len(narrow.shape) == len(wide.shape)
        and all(want in (-1, have) for have, want in zip(narrow.shape, wide.shape, strict=True))
    )


def _named(specs: Iterable[TensorSpec]) -> dict[str, TensorSpec]:
    return {spec.name: spec for spec in specs}


def _said(way: str, name: str, own: TensorSpec | None, baseline: TensorSpec | None) -> str:
    return f"{way} {name!r} is {_kind(own)} here and {_kind(baseline)} there"


def _kind(spec: TensorSpec | None) -> str:
    return f"{spec.datatype} {list(spec.shape)}" if spec is not None else "missing"
