import json

from training.data.datasets.catalog import load_dataset


def test_smart_home_answers_are_json_with_what_was_said() -> None:
    for chat in load_dataset("smart-home", size=300, seed=3).train:
        prompt, answer = chat.messages
        slots = json.loads(answer["content"])
        assert slots["intent"].startswith("Hass")
        for slot in ("area", "name", "item"):
            if slot in slots:
                assert str(slots[slot]).lower() in prompt["content"].lower()
