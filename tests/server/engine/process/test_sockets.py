import multiprocessing
import os
import tempfile
from multiprocessing.util import get_temp_dir
from pathlib import Path

import pytest

from server.engine.process.sockets import socket_folder

OF_VLLM = "VLLM_RPC_BASE_PATH"


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocessing.current_process(), "_config", {})
    monkeypatch.setattr(os, "environ", os.environ.copy())
    os.environ.pop(OF_VLLM, None)


def place(monkeypatch: pytest.MonkeyPatch, temporary: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))


def test_all_sockets_stand_in_one_folder_until_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    place(monkeypatch, Path(tempfile.mkdtemp(dir="/tmp")))
    with socket_folder() as folder:
        assert folder is not None
        assert Path(folder).stat().st_mode & 0o77 == 0, "another user can read it"
        assert os.environ[OF_VLLM] == folder
        assert get_temp_dir() == folder
        (Path(folder) / "socket").touch()
    assert not Path(folder).exists()
    Path(folder).parent.rmdir()


def test_vllm_keeps_the_operators_place_and_any_that_a_socket_has_room_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    deep = tmp_path / ("d" * 80)
    deep.mkdir()
    place(monkeypatch, deep)
    with socket_folder() as folder:
        assert folder is not None
        assert OF_VLLM not in os.environ, "the path of vLLM's sockets would be too long"
    place(monkeypatch, Path("/tmp"))
    os.environ[OF_VLLM] = "/run/vllm"
    with socket_folder():
        assert os.environ[OF_VLLM] == "/run/vllm"


def test_without_a_place_for_temporary_files_there_is_no_folder_and_the_log_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place(monkeypatch, tmp_path / "absent")
    with socket_folder() as folder:
        assert folder is None
    assert OF_VLLM not in os.environ
    assert "set TMPDIR" in caplog.text
