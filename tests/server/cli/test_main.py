"""The command itself: its version, its help, and completion."""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from tests.docs.generated import all_commands
from tests.server.cli.commands import run

LORAPLEX = Path(sys.executable).parent / "loraplex"


def test_version() -> None:
    assert run("--version").strip() == f"loraplex {metadata.version('loraplex')}"


@pytest.mark.parametrize("path", sorted(all_commands()))
def test_help_has_full_sentences_and_no_type_for_flags(path: str) -> None:
    command = all_commands()[path]
    _, *words = path.split()
    shown = run(*words, "--help")
    assert "<bool>" not in shown
    assert command.epilog, f"{path} has no example"
    assert (command.help or "").strip().splitlines()[0][0].isupper()
    shown_parameters = (p for p in command.params if not getattr(p, "hidden", False))
    for parameter in shown_parameters:
        text = (getattr(parameter, "help", None) or "").strip()
        assert text, f"{path}: {parameter.name} has no help"


def test_a_shell_completes_commands_without_a_server() -> None:
    environment = {
        **os.environ,
        "_LORAPLEX_COMPLETE": "complete_bash",
        "COMP_WORDS": "loraplex adapters re",
        "COMP_CWORD": "2",
        "LORAPLEX_URL": "http://127.0.0.1:9",
    }
    done = subprocess.run([LORAPLEX], env=environment, capture_output=True, text=True, check=False)
    assert sorted(done.stdout.split()) == ["recheck", "register", "resume", "retire"], done.stderr
