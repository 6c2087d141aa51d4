"""One trial in a process of its own."""

from pathlib import Path

import pytest

from training.comparison.trial import run_trial
from training.data.conversations import exchange
from training.data.reading import write_conversations
from training.errors import TrainingError

TRAIN = [exchange(f"say {word}", word) for word in ("ping", "pong", "tick", "tock") * 5]


TEST = TRAIN[:3]


def test_a_trial_has_a_process_of_its_own(tiny_llama: Path, tmp_path: Path) -> None:
    write_conversations(tmp_path / "test.jsonl", TEST)
    recipe = {"targets": ["w_pack"], "validation_share": 0}
    data = tmp_path / "test.jsonl"
    with pytest.raises(TrainingError, match=r"^arm: these targets don't fit"):
        run_trial(tmp_path / "arm", tiny_llama, recipe, data, data)
