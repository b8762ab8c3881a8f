"""The roles of tokens, by name."""

from __future__ import annotations

#: From least to most: each role may do all that the ones before it may.
ROLES: tuple[str, ...] = ("viewer", "tester", "labeller", "operator", "release-manager", "admin")
#: A role of its own, for the monitor: it reads, reports, and pulls the brakes.
MONITOR = "monitor"
