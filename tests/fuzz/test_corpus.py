"""Every kept input of `make fuzz` once more.

Inputs that found a mistake have `mistake` in their names.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
MOST_BYTES_OF_A_CORPUS = 256 << 10


@pytest.mark.parametrize("name", TARGETS)
def test_the_kept_inputs_find_no_mistake(name: str) -> None:
    inputs = sorted((CORPUS / name).iterdir())
    assert len(inputs) >= 5
    for file in inputs:
        try:
            TARGETS[name](file.read_bytes())
        except Exception as error:
            raise AssertionError(f"{file.name}: {file.read_bytes()[:200]!r}") from error


def test_the_corpus_is_small_and_belongs_to_targets() -> None:
    assert {folder.name for folder in CORPUS.iterdir()} == set(TARGETS)
    assert sum(f.stat().st_size for f in CORPUS.rglob("*") if f.is_file()) < MOST_BYTES_OF_A_CORPUS
