"""Clients that ask for answers on and on, and what they were answered."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass, field

import httpx

from tests.chaos.answers import Ask, Refused, Said

SECONDS = 60
"""How long one answer may take."""


class Place:
    """An address that readers ask. While a fault is at work there, its answers may fail."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._lock, self._changes = threading.Lock(), 0

    def excuse(self, is_excused: bool) -> None:
        """Say whether answers may fail from here on. What is under way meanwhile may, too."""
        with self._lock:
            if self.is_excused != is_excused:
                self._changes += 1

    @property
    def is_excused(self) -> bool:
        return self._changes % 2 == 1

    def moment(self) -> int:
        """Compare two of them: if they are equal and even, no fault was at work between them."""
        return self._changes


@dataclass
class Answers:
    """What all readers were answered."""

    num_whole: int = 0
    num_excused: int = 0
    """Failures where and while a fault was at work."""
    failed: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    slowest_seconds: float = 0.0

    def __add__(self, other: Answers) -> Answers:
        return Answers(
            self.num_whole + other.num_whole,
            self.num_excused + other.num_excused,
            self.failed + other.failed,
            self.wrong + other.wrong,
            max(self.slowest_seconds, other.slowest_seconds),
        )


class Reader(threading.Thread):
    """Asks one adapter after another at one place after another, until it is told to end."""

    def __init__(self, places: list[Place], right: dict[str, Said], ask: Ask, key: str) -> None:
        """`right`: the answer of each adapter that may be asked for, by name."""
        super().__init__(daemon=True)
        self.ended, self.answers = False, Answers()
        self._places, self._right, self._answer_of = places, right, ask
        headers = {"Authorization": f"Bearer {key}"}
        self._http = httpx.Client(headers=headers, timeout=SECONDS)

    def run(self) -> None:
        while not self.ended:
            self._ask(random.choice(self._places), random.choice(sorted(self._right)))
            time.sleep(0.05)

    def _ask(self, place: Place, name: str) -> None:
        before, began_at = place.moment(), time.monotonic()
        try:
            said = self._answer_of(self._http, place.url, name)
        except Refused as error:
            if before == place.moment() and not place.is_excused:
                self.answers.failed.append(f"{name} at {place.url}: {error}")
            else:
                self.answers.num_excused += 1
            time.sleep(0.1)
            return
        seconds = time.monotonic() - began_at
        self.answers.slowest_seconds = max(self.answers.slowest_seconds, seconds)
        if said == self._right[name]:
            self.answers.num_whole += 1
        else:
            self.answers.wrong.append(f"{name} at {place.url}: {set(said)}")
