"""A directory is written whole or not at all."""

import stat
from pathlib import Path

import pytest

from training.errors import TrainingError
from training.models.checkpoint import whole_or_not_at_all


def test_files_have_the_mode_that_new_files_have(tmp_path: Path) -> None:
    with whole_or_not_at_all(tmp_path / "out") as scratch:
        (scratch / "sub").mkdir()
        for name in ("a", "sub/b"):
            (scratch / name).touch(mode=0o600)
    (tmp_path / "usual").touch()
    wanted = stat.S_IMODE((tmp_path / "usual").stat().st_mode)
    found = [tmp_path / "out" / "a", tmp_path / "out" / "sub" / "b"]
    assert [stat.S_IMODE(file.stat().st_mode) for file in found] == [wanted, wanted]
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with whole_or_not_at_all(tmp_path / "out") as scratch:
            (scratch / "a").touch()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not list(tmp_path.iterdir())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").touch()
    with (
        pytest.raises(TrainingError, match="isn't empty"),
        whole_or_not_at_all(tmp_path / "out"),
    ):
        pass
