"""How much requests have used, and the hours, days and months by which that is added up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from operator import add, neg
from typing import NamedTuple

from adapters_registry.records.tables import Base
from adapters_registry.records.usage.tables import DailyUsage, MonthlyUsage, TotalUsage, Usage

DAY = timedelta(days=1)


@dataclass
class Consumption:
    """What requests have used."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    slot_seconds: float = 0.0
    """How long slots were held, summed over the requests that held the same slot together."""
    cold_starts: int = 0
    """Requests whose version was in no slot when they arrived."""
    flex_input_tokens: int = 0
    """Of the tokens in, those of requests in the service tier `flex`. So are the next three."""
    flex_output_tokens: int = 0
    priority_input_tokens: int = 0
    priority_output_tokens: int = 0

    @classmethod
    def of(cls, *values: float) -> Consumption:
        """Return what a row of a database says: there, a sum of integers may be a Decimal."""
        named = dict(zip(COLUMNS, values, strict=True))
        counts = {name: int(value) for name, value in named.items() if name != "slot_seconds"}
        return cls(slot_seconds=float(named["slot_seconds"]), **counts)

    def __add__(self, other: Consumption) -> Consumption:
        return Consumption(*map(add, vars(self).values(), vars(other).values()))

    def __neg__(self) -> Consumption:
        return Consumption(*map(neg, vars(self).values()))

    @property
    def tokens(self) -> int:
        """Tokens in and out."""
        return self.input_tokens + self.output_tokens

    @property
    def flex_tokens(self) -> int:
        """Tokens in and out of the service tier `flex`."""
        return self.flex_input_tokens + self.flex_output_tokens

    @property
    def priority_tokens(self) -> int:
        """Tokens in and out of the service tier `priority`."""
        return self.priority_input_tokens + self.priority_output_tokens


COLUMNS = tuple(field.name for field in fields(Consumption))
CONSUMER = ("tenant_id", "tenant", "adapter")
"""The columns that say who has used what."""

UsageKey = tuple[datetime, str, str, str]
"""An hour, a tenant's id and name, an adapter."""


def hour_of(moment: datetime) -> datetime:
    """Return the beginning of a moment's hour."""
    return moment.replace(minute=0, second=0, microsecond=0)


def day_of(moment: datetime) -> datetime:
    """Return the beginning of a moment's day. The moment is in UTC."""
    return hour_of(moment).replace(hour=0)


def month_of(moment: datetime) -> datetime:
    """Return the beginning of a moment's month. The moment is in UTC."""
    return day_of(moment).replace(day=1)


class Sums(NamedTuple):
    """A table of usage: the stretches of time by which it adds up, and whose usage it tells apart.

    Each row has the beginning of its stretch in the column `moment`.
    """

    table: type[Base]
    moment: str
    begin_of: Callable[[datetime], datetime]
    length: timedelta
    """At least as long as a stretch, and shorter than two."""
    consumer: tuple[str, ...] = CONSUMER

    @property
    def key(self) -> tuple[str, ...]:
        """The columns of the primary key."""
        return self.moment, *self.consumer

    def first_from(self, moment: datetime) -> datetime:
        """Return the beginning of the first stretch that does not begin before a moment."""
        begin = self.begin_of(moment)
        return begin if begin == moment else self.begin_of(begin + self.length)


HOURS = Sums(Usage, "hour", hour_of, timedelta(hours=1))
DAYS = Sums(DailyUsage, "day", day_of, DAY)
MONTHS = Sums(MonthlyUsage, "month", month_of, timedelta(days=32))
TOTALS = Sums(TotalUsage, "day", day_of, DAY, ())
