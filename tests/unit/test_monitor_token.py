"""The token by which the monitor speaks to the control plane, as an environment variable brings it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from monitoring.config import TOKEN_VARIABLE, MonitorConfig, with_token
from monitoring.sidecar import Sidecar, main
from serving.clock import FakeClock


def config(folder: Path) -> MonitorConfig:
    return MonitorConfig("test", str(folder), str(folder), str(folder / "word"), "http://control", {})


@pytest.mark.parametrize("text", ["canarium_x\n", "canarium_x\r\n", " canarium_x "])
async def test_the_line_end_of_a_secret_is_no_part_of_it(tmp_path: Path, text: str) -> None:
    sidecar = Sidecar(with_token(config(tmp_path), text), FakeClock())
    for client in (sidecar.client, sidecar.gateway):
        assert client.headers["authorization"] == "Bearer canarium_x"
        await client.aclose()


def test_without_one_the_configuration_stays_as_it_is(tmp_path: Path) -> None:
    assert with_token(config(tmp_path), "\n") == config(tmp_path)


@pytest.mark.parametrize("token", ["sec\nret", "s\u00e9cret"])
def test_one_that_no_header_can_carry_ends_the_monitor_and_is_not_shown(
    tmp_path: Path, token: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "monitor.json"
    file.write_bytes(msgspec.json.encode(config(tmp_path)))
    monkeypatch.setenv(TOKEN_VARIABLE, token)
    assert main(["--config", str(file)]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"monitor: {TOKEN_VARIABLE}: expected one line of printable ASCII")
    assert "ret" not in said
