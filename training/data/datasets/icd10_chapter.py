"""ICD-10-CM: diagnosis to chapter (package MIT, classification in the public domain)."""

from __future__ import annotations

import random
from collections.abc import Iterator

from training.data.conversations import Conversation, exchange
from training.data.datasets.split import Split, hold_out, num_to_test


def icd10_chapter(size: int, rng: random.Random) -> Split:
    """Make examples of a diagnosis and the name of its chapter. Hold out whole categories."""
    import simple_icd_10_cm as icd

    chapters: dict[str, list[str]] = {}
    for code in icd.get_all_codes():
        if icd.is_category(code):
            chapters.setdefault(icd.get_ancestors(code)[-1], []).append(code)
    split = {chapter: hold_out(codes, rng) for chapter, codes in chapters.items()}

    def examples(side: int, count: int) -> Iterator[Conversation]:
        names = sorted(split, key=int)
        for index in range(count):
            chapter = names[index % len(names)]
            category = rng.choice(split[chapter][side])
            code = rng.choice([category, *icd.get_descendants(category)[:40]])
            yield exchange(
                f"Diagnosis: {icd.get_description(code)}",
                icd.get_description(chapter).rsplit(" (", 1)[0],
            )

    return Split(list(examples(0, size)), list(examples(1, num_to_test(size))))
