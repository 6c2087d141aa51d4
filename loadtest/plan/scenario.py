"""A scenario: a question, and the load that answers it.

Every unknown key is an error. Times are in seconds, rates in requests a second.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

Share = Annotated[float, Field(ge=0, le=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Poisson(_Part):
    """Independent requests."""

    process: Literal["poisson"]
    rate: PositiveFloat


class Gamma(_Part):
    """Bursts: gaps are Gamma-distributed with coefficient of variation `cv`, as S-LoRA's are."""

    process: Literal["gamma"]
    rate: PositiveFloat
    cv: PositiveFloat = 2.0


class Ramp(_Part):
    """Independent requests whose rate goes from `rate` to `to_rate` over the run."""

    process: Literal["ramp"]
    rate: NonNegativeFloat
    to_rate: PositiveFloat


class Trace(_Part):
    """A recorded trace, such as the `requests.csv` of a run.

    It is a CSV file with `at_seconds`, and optionally `model`, `tenant`, `input_tokens` and
    `output_tokens`.
    """

    process: Literal["trace"]
    file: Path
    speed: PositiveFloat = 1.0


class Closed(_Part):
    """As many clients as `concurrency`, each with one request open at any time."""

    process: Literal["closed"]
    concurrency: PositiveInt


Arrivals = Annotated[Poisson | Gamma | Ramp | Trace | Closed, Field(discriminator="process")]


class Fixed(_Part):
    """Always the same number of tokens."""

    kind: Literal["fixed"]
    tokens: PositiveInt


class Uniform(_Part):
    """Any number from `min` to `max`, both included."""

    kind: Literal["uniform"]
    min: PositiveInt
    max: PositiveInt


class LogNormal(_Part):
    """Log-normal around `median`, cut to `min` and `max`."""

    kind: Literal["lognormal"]
    median: PositiveFloat
    sigma: NonNegativeFloat
    min: PositiveInt = 1
    max: PositiveInt


class Dataset(_Part):
    """JSON Lines with `prompt` (text), or `messages` (chat), and optionally `output_tokens`."""

    kind: Literal["dataset"]
    file: Path


Length = Annotated[Fixed | Uniform | LogNormal, Field(discriminator="kind")]
InputLength = Annotated[Fixed | Uniform | LogNormal | Dataset, Field(discriminator="kind")]


class Adapters(_Part):
    """Which adapters are asked for, and how often."""

    count: NonNegativeInt = 0
    """How many named `prefix-0`, `prefix-1`, ... are registered if missing, with random weights."""
    prefix: str = "load"
    tenant: str = "default"
    """The tenant that owns them."""
    rank: PositiveInt = 8
    update: PositiveFloat = 0.002
    """Standard deviation of the random weights."""
    names: tuple[str, ...] = ()
    """Other adapters, which the server has already."""
    popularity: Literal["uniform", "zipf", "file"] = "uniform"
    exponent: PositiveFloat = 1.0
    """For zipf: the i-th adapter is asked for in proportion to 1 / i ** exponent."""
    file: Path | None = None
    """CSV with `model` and `weight`, for popularity `file`."""
    base_share: Share = 0.0
    """The share of requests that ask for the base."""

    @model_validator(mode="after")
    def _file_where_popularity_is_one(self) -> Self:
        if (self.popularity == "file") != (self.file is not None):
            raise ValueError("give `file` if popularity is 'file', and only then")
        if self.popularity != "file" and not self.all_names and self.base_share < 1:
            raise ValueError("there are no adapters: give `count`, `names`, or base_share = 1")
        return self

    @property
    def made(self) -> tuple[str, ...]:
        """Return the names of the adapters that are registered if missing."""
        return tuple(f"{self.prefix}-{index}" for index in range(self.count))

    @property
    def all_names(self) -> tuple[str, ...]:
        """Return the names of all adapters, the most popular first."""
        return self.made + self.names


class Requests(_Part):
    """What each request looks like."""

    api: Literal["completions", "chat"] = "completions"
    input: InputLength = Fixed(kind="fixed", tokens=32)
    output: Length = Fixed(kind="fixed", tokens=64)
    shared_prefix_tokens: NonNegativeInt = 0
    """The first tokens of each prompt are the same for all requests of a model."""
    ignore_eos: bool = True
    """Generate exactly as many tokens as asked. Fewer are an error."""
    turns: PositiveInt = 1
    """Turns of a conversation (chat only). Each turn carries the history."""
    think_seconds: NonNegativeFloat = 0.0
    """Mean pause before the next turn, exponentially distributed."""
    disconnect_share: Share = 0.0
    """The share of clients that disconnect in the middle of an answer."""


class Tenant(_Part):
    """A client with a key of its own, and optionally a load of its own."""

    name: str
    key: str | None = Field(default=None, repr=False)
    key_file: Path | None = None
    arrivals: Arrivals | None = None
    adapters: Adapters | None = None
    requests: Requests | None = None


class Churn(_Part):
    """Changes of the made adapters during the run, per minute.

    They go through our admin API. On a server such as vLLM's own, a name is unloaded and loaded
    again.
    """

    registrations_per_minute: NonNegativeFloat = 0.0
    """Each adds a version with other weights, which isn't live yet."""
    promotions_per_minute: NonNegativeFloat = 0.0
    rollbacks_per_minute: NonNegativeFloat = 0.0
    retirements_per_minute: NonNegativeFloat = 0.0
    in_place: bool = False
    """Where names are loaded again: whether a version's files replace the earlier ones in place."""

    @property
    def any(self) -> bool:
        """Return whether there are any changes."""
        return any(rate > 0 for rate in self.model_dump(exclude={"in_place"}).values())


class Truth(_Part):
    """Which share of requests is checked against golden answers."""

    share: Share = 0.0
    prompts: Annotated[int, Field(ge=1, le=8)] = 4
    """Golden prompts for each version."""
    tokens: PositiveInt = 8
    """Length of a golden answer."""
    prefix_words: NonNegativeInt = 0
    """Words before each golden prompt. A prefix cache keeps whole blocks only, of 128 tokens on
    CPU, so that only longer prompts can show what it mixes up."""


class Goodput(_Part):
    """Limits in milliseconds. An answer within all of them counts as goodput."""

    ttft_ms: PositiveFloat | None = None
    tpot_ms: PositiveFloat | None = None
    e2e_ms: PositiveFloat | None = None


class Limits(_Part):
    """Bounds in time and number, so that a run ends whatever the server does."""

    stall_seconds: PositiveFloat = 30.0
    """A request fails if no byte comes for so long."""
    request_seconds: PositiveFloat = 120.0
    drain_seconds: NonNegativeFloat = 30.0
    """How long open requests may go on after the last arrival."""
    max_in_flight: PositiveInt | None = None
    """How many requests may be open. Others wait in the client, and their wait is measured."""


class Scenario(_Part):
    """A question, and the load that answers it."""

    question: str
    seed: int = 0
    duration_seconds: PositiveFloat = 60.0
    warmup_seconds: NonNegativeFloat = 0.0
    """The first seconds of the run aren't counted."""
    arrivals: Arrivals
    adapters: Adapters = Adapters(base_share=1.0)
    requests: Requests = Requests()
    tenants: tuple[Tenant, ...] = ()
    churn: Churn = Churn()
    truth: Truth = Truth()
    goodput: Goodput = Goodput()
    limits: Limits = Limits()
    slo: str = ""
    """Objectives, such as 'ttft_p99<500ms,error_rate<0.1%'. The command line's win over them."""
    server_flags: tuple[str, ...] = ()
    """Flags of the server that is started if none is given."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.warmup_seconds >= self.duration_seconds:
            raise ValueError("warmup_seconds leaves nothing of duration_seconds")
        if any(part.turns > 1 and part.api != "chat" for part in self._all_requests()):
            raise ValueError("turns > 1 needs api = 'chat'")
        if self.churn.any and not self.made_adapters():
            raise ValueError("churn changes the adapters that are made: give adapters.count")
        return self

    def _all_requests(self) -> list[Requests]:
        return [self.requests, *(t.requests for t in self.tenants if t.requests)]

    def made_adapters(self) -> dict[str, Adapters]:
        """Return the adapters that are registered if missing, and how each is made."""
        parts = [self.adapters, *(t.adapters for t in self.tenants if t.adapters)]
        return {name: part for part in parts for name in part.made}
