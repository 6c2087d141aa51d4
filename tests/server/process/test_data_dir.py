"""The data folder's server id: new with each start, so that a copy is no second server of it."""

from pathlib import Path

from server.process.data_dir import take_server_id
from server.settings import Settings


def test_each_life_of_a_server_has_an_id_of_its_own(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    first = take_server_id(settings)
    copied = (tmp_path / "server.id").read_text()
    second = take_server_id(settings)
    (tmp_path / "server.id").write_text(copied)  # the folder was copied after the first start
    of_copy = take_server_id(settings)
    assert first.before == ""
    assert (second.before, of_copy.before) == (first.own, first.own)
    assert len({first.own, second.own, of_copy.own}) == 3
