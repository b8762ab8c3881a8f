"""Metric families for the exporter, in one line each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

#: Labels of what is about one variant of a model.
MV = ("model", "variant")


def counter(name: str, text: str, labels: Sequence[str] = ()) -> CounterMetricFamily:
    return CounterMetricFamily(name, text, labels=labels)


def gauge(name: str, text: str, labels: Sequence[str] = ()) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, labels=labels)


def with_ends(names: tuple[str, str, str], text: str, labels: Sequence[str]) -> tuple[GaugeMetricFamily, ...]:
    """A mean and the ends of its confidence sequence."""
    ends = ("Lower end", "Upper end")
    told = (text, *(f"{end} of its 95 % confidence sequence, valid however often read." for end in ends))
    return tuple(gauge(name, said, labels) for name, said in zip(names, told, strict=True))


def single(family: Any, value: float) -> Metric:
    family.add_metric((), value)
    result: Metric = family
    return result


def cumulative(bounds: Iterable[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    total, result = 0, []
    for bound, number in zip([*bounds, math.inf], counts, strict=True):
        total += number
        result.append(("+Inf" if math.isinf(bound) else repr(float(bound)), float(total)))
    return result
