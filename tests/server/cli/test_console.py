"""How commands end: one line and an exit code, the same for all."""

import pytest
from typer.testing import CliRunner

from server.cli import console
from server.cli.main import app


def test_an_error_is_one_line_and_its_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, console.ending_on(ValueError):
        raise ValueError("[bold]no[/bold] such thing")
    assert ended.value.code == console.BAD_INPUT
    assert capsys.readouterr().err == "loraplex: [bold]no[/bold] such thing\n"


def test_ctrl_c_has_a_code_of_its_own() -> None:
    with pytest.raises(SystemExit) as ended, console.ending_on(ValueError):
        raise KeyboardInterrupt
    assert ended.value.code == console.INTERRUPTED


def test_errors_that_nobody_expects_keep_their_trace() -> None:
    with pytest.raises(TypeError), console.ending_on(ValueError):
        raise TypeError("a fault of ours")


@pytest.mark.parametrize("scenario", ["bursts", "hot-swap", "lora-overhead", "four-bit"])
def test_all_measurements_end_alike(scenario: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAPLEX_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("LORAPLEX_API_KEY", "key")
    result = CliRunner().invoke(app, ["loadtest", "run", scenario])
    assert result.exit_code == console.BAD_INPUT
    assert "loraplex: " in result.output
