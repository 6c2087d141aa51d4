"""Subjects out of the package's archive: a small one of the same layout, made here."""

import random

import pytest

from tests.training.data.made_archives import put_archive
from training.data import archives
from training.data.datasets import spam_assassin


@pytest.mark.usefixtures("own_cache")
def test_subjects() -> None:
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
    archive = put_archive(spam_assassin.SPAM_ASSASSIN, files, archives.archives_directory())
    split = spam_assassin.spam_assassin(40, random.Random(1), archive)
    asked, held_out = (
        {(chat.messages[0]["content"], chat.answer["content"]) for chat in side}
        for side in (split.train, split.test)
    )
    assert asked | held_out == {(f"Subject: plan {n}", "ham") for n in range(20)} | {
        (f"Subject: café {n}", "spam") for n in range(20)
    }
    assert not asked & held_out
    for side in (split.train, split.test):
        answers = [chat.answer["content"] for chat in side]
        assert answers.count("spam") == answers.count("ham") == len(side) // 2
