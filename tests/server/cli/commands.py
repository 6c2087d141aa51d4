"""Runs `loraplex` commands as a person would call them."""

from typer.testing import CliRunner

from server.cli import main


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(main.app, arguments)
    assert result.exit_code == code, result.output
    return result.output
