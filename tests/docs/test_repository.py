"""Rules for every file of the repository."""

from __future__ import annotations

import re
import subprocess

from repository import ROOT, anchors, blocks, commands, files, links

#: Directories of one particular machine, put together here so that this file does not name them.
PRIVATE = re.compile("|".join((r"/wo" + r"rk/", r"/ro" + r"ot/", r"/tmp/bash" + r"_jobs")).encode())


def test_no_file_names_a_directory_of_a_particular_machine() -> None:
    found = []
    for path in files():
        data = path.read_bytes()
        if b"\0" not in data[:8192] and (match := PRIVATE.search(data)):
            found.append(f"{path.relative_to(ROOT)}:{data[: match.start()].count(bytes([10])) + 1}")
    assert found == []


def test_continuous_integration_runs_the_readmes_test_command() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
    assert script.rstrip().splitlines()[-1] == "CANARIUM_CI=1 make test"
    assert "make test" in commands((ROOT / "README.md").read_text(encoding="utf-8"))


def test_make_alone_explains_every_task() -> None:
    shown = subprocess.check_output(["make", "--no-print-directory"], cwd=ROOT, text=True)
    for task in ("demo", "test", "check", "bench", "clean", "help"):
        assert re.search(rf"^  {task} +\w", shown, re.MULTILINE), f"make help does not explain {task}"


def test_the_readers_of_documents_read() -> None:
    page = '# A `b` c!\n\n[x](y.md#z "t") ![i](p.png)\n\n```sh\n$ one \\\n  two  # three\n```\n## A b c\n'
    assert links(page) == ["y.md#z", "p.png"]
    assert anchors(page) == {"a-b-c", "a-b-c-1"}
    assert commands(page) == ["one  two"] or commands(page) == ["one two"]
    assert blocks(page, "yaml") == []
