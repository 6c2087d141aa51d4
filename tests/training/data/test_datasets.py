import json

import pytest

from training.data.datasets import load_dataset
from training.errors import TrainingError


@pytest.mark.parametrize("name", ["smart-home", "icd10-chapter"])
def test_deterministic_and_held_out(name: str) -> None:
    first, again = (load_dataset(name, size=300, seed=1) for _ in range(2))
    assert first == again
    assert first != load_dataset(name, size=300, seed=2)
    assert len(first.train) == 300
    assert len(first.test) >= 100
    if name == "icd10-chapter":
        trained = {conversation[0]["content"] for conversation in first.train}
        assert not trained & {conversation[0]["content"] for conversation in first.test}


def test_smart_home_answers_are_json_with_what_was_said() -> None:
    for prompt, answer in load_dataset("smart-home", size=300, seed=3).train:
        slots = json.loads(answer["content"])
        assert slots["intent"].startswith("Hass")
        for slot in ("area", "name", "item"):
            if slot in slots:
                assert str(slots[slot]).lower() in prompt["content"].lower()


def test_unknown_dataset() -> None:
    with pytest.raises(TrainingError, match="there are: icd10-chapter, smart-home"):
        load_dataset("nope", size=1, seed=1)
