"""Smart home: the sentence grammars of Home Assistant's voice assistant (Apache-2.0)."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

from training.data.conversations import Conversation, exchange
from training.data.datasets.split import Split, hold_out, num_to_test
from training.errors import TrainingError

SMART_HOME_INTENTS = (
    "HassTurnOn",
    "HassTurnOff",
    "HassLightSet",
    "HassSetVolume",
    "HassClimateSetTemperature",
    "HassClimateGetTemperature",
    "HassGetWeather",
    "HassFanSetSpeed",
    "HassShoppingListAddItem",
    "HassMediaNext",
    "HassMediaPause",
    "HassVacuumStart",
)
SMART_HOME_SLOTS = {
    "area": ["kitchen", "living room", "bedroom", "bathroom", "garage", "office", "hallway"],
    "floor": ["ground floor", "first floor", "basement"],
    "name": ["desk lamp", "ceiling fan", "coffee machine", "radio", "heater", "front door light"],
    "shopping_list_item": ["milk", "apples", "bread", "coffee", "eggs", "rice", "olive oil"],
}


def smart_home(size: int, rng: random.Random) -> Split:
    """Make examples of an utterance and its JSON intent. Hold out whole sentence templates."""
    from hassil.intents import Intents
    from home_assistant_intents import get_intents

    grammar = Intents.from_dict(get_intents("en"))
    templates = [
        (name, block, sentence)
        for name in SMART_HOME_INTENTS
        for block in grammar.intents[name].data
        for sentence in block.sentences
    ]
    seen, unseen = hold_out(templates, rng)

    def examples(pool: list[Any], count: int) -> Iterator[Conversation]:
        by_intent = {name: [t for t in pool if t[0] == name] for name in SMART_HOME_INTENTS}
        intents = [name for name in SMART_HOME_INTENTS if by_intent[name]]
        for index in range(count):
            name, block, sentence = rng.choice(by_intent[intents[index % len(intents)]])
            rules = {**grammar.expansion_rules, **block.expansion_rules}
            utterance = _Utterance(rng, grammar.slot_lists, rules)
            text = " ".join(utterance.say(sentence.expression).split())
            slots = {**block.slots, **utterance.slots}
            answer = {"intent": name, **{key: slots[key] for key in sorted(slots)}}
            yield exchange(text[:1].upper() + text[1:], json.dumps(answer, ensure_ascii=False))

    return Split(list(examples(seen, size)), list(examples(unseen, num_to_test(size))))


class _Utterance:
    """One random sentence of a hassil template, and the slots that it fills."""

    def __init__(self, rng: random.Random, lists: dict[str, Any], rules: dict[str, Any]) -> None:
        self.rng, self.lists, self.rules = rng, lists, rules
        self.slots: dict[str, Any] = {}

    def say(self, expression: Any) -> str:
        from hassil import expression as grammar

        match expression:
            case grammar.TextChunk():
                return str(expression.original_text)
            case grammar.Alternative():
                return self.say(self.rng.choice(expression.items))
            case grammar.Permutation():
                order = self.rng.sample(expression.items, len(expression.items))
                return " ".join(self.say(item) for item in order)
            case grammar.Group():
                return "".join(self.say(item) for item in expression.items)
            case grammar.RuleReference():
                return self.say(self.rules[expression.rule_name].expression)
            case grammar.ListReference():
                return self._fill(expression)
        raise TypeError(f"unknown expression {expression!r}")

    def _fill(self, reference: Any) -> str:
        text, value = self._value(reference.list_name)
        self.slots[reference.slot_name] = value
        return text

    def _value(self, list_name: str) -> tuple[str, Any]:
        from hassil.intents import RangeSlotList, TextSlotList

        if list_name in SMART_HOME_SLOTS:
            value = self.rng.choice(SMART_HOME_SLOTS[list_name])
            return value, value
        choices = self.lists[list_name]
        if isinstance(choices, RangeSlotList):
            number = self.rng.randrange(choices.start, choices.stop + 1, choices.step)
            return str(number), number
        if isinstance(choices, TextSlotList):
            choice = self.rng.choice(choices.values)
            return self.say(choice.text_in), choice.value_out
        raise TrainingError(f"no values are known for the slot list {list_name!r}")
