"""Datasets out of packages' archives: small ones of the same layout, made here."""

import hashlib
import io
import json
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from training.data import archives, datasets
from training.data.archives import Archive
from training.data.datasets import load_dataset
from training.errors import TrainingError

STREET = (
    "<AddressString><AddressNumber>{0}</AddressNumber> <StreetName>Oak</StreetName> "
    "<StreetName>Hill{0}</StreetName> <StreetNamePostType>Rd,</StreetNamePostType> "
    "<PlaceName>Elm</PlaceName></AddressString>"
)
UNUSABLE = (
    "<AddressString><Recipient>A. Body</Recipient> <AddressNumber>1</AddressNumber>"
    "</AddressString><AddressString><PlaceName>Elm</PlaceName> <ZipCode>10001</ZipCode> "
    "<PlaceName>City</PlaceName></AddressString>"
)


def put_archive(archive: Archive, files: dict[str, str], directory: Path) -> Archive:
    directory.mkdir(parents=True, exist_ok=True)
    with tarfile.open(directory / archive.file, "w:gz") as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))
    digest = hashlib.sha256((directory / archive.file).read_bytes()).hexdigest()
    return replace(archive, sha256=digest)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "".join(STREET.format(number) for number in range(40)) + UNUSABLE
    files = {datasets.ADDRESSES_FILE: f"<AddressCollection>{text}</AddressCollection>"}
    archive = put_archive(datasets.ADDRESSES, files, archives.archives_directory())
    monkeypatch.setattr(datasets, "ADDRESSES", archive)
    split = load_dataset("us-addresses", size=50, seed=1)
    assert len(split.train) == 50
    assert len(split.test) == 6
    asked, held_out = ({chat[0]["content"] for chat in side} for side in (split.train, split.test))
    assert len(asked | held_out) == 40
    assert not asked & held_out
    for question, answer in split.test:
        number = question["content"].split()[0]
        assert question["content"] == f"{number} Oak Hill{number} Rd, Elm"
        assert json.loads(answer["content"]) == {
            "AddressNumber": number,
            "StreetName": f"Oak Hill{number}",
            "StreetNamePostType": "Rd",
            "PlaceName": "Elm",
        }


def test_subjects(monkeypatch: pytest.MonkeyPatch) -> None:
    def mail(subject: str) -> str:
        return f"From: someone@example.com\nSubject: {subject}\n\nSubject: not this\n"

    files = {}
    for number in range(20):
        files[f"package/data/easy-ham-1/{number}.txt"] = mail(f"Re: [list] fwd: plan {number}")
        files[f"package/data/easy-ham-2/{number}.txt"] = mail(f"Plan {number}")
        files[f"package/data/spam-1/{number}.txt"] = mail(f"=?utf-8?q?caf=C3=A9?= {number}")
        files[f"package/data/spam-1/{number}.json"] = mail("no mail")
    files |= {
        "package/data/spam-2/1.txt": mail("write to someone@example.com"),
        "package/data/spam-2/2.txt": mail("both"),
        "package/data/hard-ham-1/1.txt": mail("BOTH"),
        "package/README.md": mail("no mail"),
    }
    archive = put_archive(datasets.SPAM_ASSASSIN, files, archives.archives_directory())
    monkeypatch.setattr(datasets, "SPAM_ASSASSIN", archive)
    split = load_dataset("spam-assassin", size=40, seed=1)
    asked, held_out = (
        {(question["content"], answer["content"]) for question, answer in side}
        for side in (split.train, split.test)
    )
    assert asked | held_out == {(f"Subject: plan {n}", "ham") for n in range(20)} | {
        (f"Subject: café {n}", "spam") for n in range(20)
    }
    assert not asked & held_out
    for side in (split.train, split.test):
        answers = [answer["content"] for _, answer in side]
        assert answers.count("spam") == answers.count("ham") == len(side) // 2


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

    monkeypatch.setattr(archives.subprocess, "run", fetch)
    with pytest.raises(TrainingError, match="isn't what it was"):
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
