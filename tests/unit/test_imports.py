"""The direction of imports, read from the syntax tree of every module (nothing is imported here)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("serving", "monitoring")

#: What a pure module must not reach: no I/O, no clock, no event loop.
IMPURE = frozenset({"ray", "httpx", "grpc", "prometheus_client", "asyncio", "time", "socket", "os"})

#: `serving.contract` maps the control word, so it may use the operating system; the pure modules take only its
#: structs and constants, and it holds no clock and no network.
CONTRACT = "serving.contract"

PURE = (
    "serving.core.", "monitoring.detectors.", "monitoring.windows", "monitoring.event", "monitoring.candidate",
    "monitoring.guard", "monitoring.guards.", "monitoring.verdicts", "monitoring.slo", "monitoring.evidence",
    "monitoring.reliability", "monitoring.intervals", "monitoring.depth", "monitoring.recording", "monitoring.replay",
    "monitoring.baseline", "monitoring.audits",
)  # fmt: skip

#: Bytes on sockets; what they mean is the business of the gateway, which imports these and not the other way round.
TRANSPORT = ("serving.transport",)
FRAMEWORKS = frozenset({"ray", "grpc", "tritonclient", "google", "numpy", "orjson", "msgspec", "starlette", "uvicorn"})

#: Entry points bind everything and are imported by nothing; Ray Serve and the console script find them by name.
ENTRY_POINTS = ("serving.app", "serving.cli")


def _name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES: dict[str, Path] = {
    _name_of(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))
}


def _imports_in(source: str, module: str, is_package: bool = False) -> set[str]:
    """Absolute names that a module imports anywhere, in functions and under TYPE_CHECKING too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                anchor = module.split(".")[: None if is_package and node.level == 1 else -node.level + is_package]
                base = ".".join((*anchor, *([node.module] if node.module else [])))
            found.add(base)
            found.update(f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            called = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            if called in ("import_module", "__import__") and node.args and isinstance(node.args[0], ast.Constant):
                found.add(str(node.args[0].value))
    return found


@cache
def imports(module: str) -> frozenset[str]:
    path = MODULES[module]
    return frozenset(_imports_in(path.read_text(encoding="utf-8"), module, path.name == "__init__.py"))


def ours(module: str) -> set[str]:
    """The modules of this repository that a module imports."""
    return {name for name in imports(module) if name in MODULES} - {module}


def chains(module: str) -> Iterator[tuple[str, ...]]:
    """Every module of ours that `module` reaches, each with the chain of imports that leads to it."""
    seen, pending = {module}, [(module,)]
    while pending:
        chain = pending.pop()
        yield chain
        for name in sorted(ours(chain[-1]) - seen):
            seen.add(name)
            pending.append((*chain, name))


def _top(name: str) -> str:
    return name.partition(".")[0]


def _is(name: str, modules: tuple[str, ...]) -> bool:
    return any(name == module.rstrip(".") or name.startswith(module.rstrip(".") + ".") for module in modules)


PURE_MODULES = [name for name in MODULES if _is(name, PURE)]


def test_the_tree_was_found() -> None:
    assert {"serving.contract", "serving.core.routing", "serving.errors"} <= set(MODULES)
    assert "serving.core.routing" in PURE_MODULES


@pytest.mark.parametrize("module", PURE_MODULES)
def test_pure_modules_reach_no_io_even_through_others(module: str) -> None:
    for chain in chains(module):
        forbidden = IMPURE - {"os"} if chain[-1] == CONTRACT else IMPURE
        reached = {name for name in imports(chain[-1]) if _top(name) in forbidden}
        if chain[-1] == "serving.clock" and len(chain) > 1:
            assert _uses_only_the_protocol(chain[-2]), f"{' -> '.join(chain)}: a pure module takes a Clock, no clock"
            continue
        assert not reached, f"{' -> '.join(chain)} imports {', '.join(sorted(reached))}"


def _uses_only_the_protocol(module: str) -> bool:
    """Whether a module takes nothing from `serving.clock` but the type of a clock."""
    return {name for name in imports(module) if name.startswith("serving.clock.")} <= {"serving.clock.Clock"}


@pytest.mark.parametrize("module", [name for name in MODULES if _top(name) == "monitoring"])
def test_monitoring_knows_only_contract_and_clock(module: str) -> None:
    allowed = ("serving.contract", "serving.packing", "serving.clock")
    strangers = {name for name in imports(module) if _top(name) == "serving" and not _is(name, allowed)} - {"serving"}
    assert not strangers, f"{module} imports {', '.join(sorted(strangers))}"


@pytest.mark.parametrize("module", [name for name in MODULES if _is(name, TRANSPORT)])
def test_the_transports_know_nothing_of_what_they_carry(module: str) -> None:
    for chain in chains(module):
        strangers = {name for name in ours(chain[-1]) if not _is(name, (*TRANSPORT, "serving.errors"))} - {"serving"}
        assert not strangers, f"{' -> '.join(chain)} imports {', '.join(sorted(strangers))}"
        foreign = {_top(name) for name in imports(chain[-1])} & FRAMEWORKS
        assert not foreign, f"{' -> '.join(chain)} imports {', '.join(sorted(foreign))}"


@pytest.mark.parametrize("module", MODULES)
def test_nothing_imports_an_entry_point(module: str) -> None:
    reached = {name for name in imports(module) if _is(name, ENTRY_POINTS)}
    assert not reached, f"{module} imports {', '.join(sorted(reached))}"


@pytest.mark.parametrize("module", [name for name, path in MODULES.items() if path.name == "__init__.py"])
def test_packages_hold_no_code(module: str) -> None:
    allowed = (ast.Import, ast.ImportFrom, ast.Expr, ast.Assign, ast.AnnAssign)
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    assert all(isinstance(node, allowed) for node in tree.body)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import os.path", "os.path"),
        ("def f():\n    from time import sleep", "time"),
        ("from . import routing", "serving.core.routing"),
        ("from ..contract import Snapshot", "serving.contract"),
        ("import importlib\nimportlib.import_module('ray')", "ray"),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import httpx", "httpx"),
    ],
)
def test_the_reader_finds_imports_wherever_they_hide(source: str, found: str) -> None:
    assert found in _imports_in(source, "serving.core.gates")


def test_the_reader_resolves_relative_imports_of_a_package() -> None:
    assert "serving.core.routing" in _imports_in("from .routing import route", "serving.core", is_package=True)
