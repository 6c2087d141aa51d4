"""Before the load: the server answers, has the adapters, and says what is true."""

from __future__ import annotations

import asyncio
import itertools
import random
import tempfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from loadtest.adapters import LlamaShape, make_adapter
from loadtest.admin import Admin
from loadtest.dialect import Dialect, Server
from loadtest.errors import LoadTestError
from loadtest.exchange import Exchange, make_call
from loadtest.outcome import Outcome
from loadtest.prompts import GOLDEN, request_body
from loadtest.scenario import Adapters, Scenario
from loadtest.schedule import DEFAULT_TENANT, Turn
from loadtest.truth import Answer, Truth

ASKED_AT_ONCE = 16
NUM_ASKED_ALONE = 24
"""Golden prompts that are also asked one at a time."""


@dataclass
class Weights:
    """Random weights on disk, made when first wanted; the same for the same name and version."""

    directory: Path
    shape: LlamaShape

    def of(self, name: str, version: int, adapters: Adapters) -> Path:
        """The directory of a version, counted from 0."""
        directory = self.directory / f"{name}-{version}"
        if not directory.is_dir():
            seed = zlib.crc32(directory.name.encode())
            make_adapter(directory, self.shape, rank=adapters.rank, seed=seed, size=adapters.update)
        return directory


@contextmanager
def weights(shape: LlamaShape, directory: Path | None = None) -> Iterator[Weights]:
    """A place for weights; kept only if a directory is given."""
    with tempfile.TemporaryDirectory(prefix="loadtest-") as temporary:
        place = directory or Path(temporary)
        place.mkdir(parents=True, exist_ok=True)
        yield Weights(place, shape)


def tenant_keys(scenario: Scenario, key: str) -> dict[str, str]:
    """Each tenant's key; the one given where it has none of its own.

    Raises:
        LoadTestError: a file with a key can't be read.
    """
    keys = {DEFAULT_TENANT: key}
    for tenant in scenario.tenants:
        try:
            own = tenant.key_file.read_text().strip() if tenant.key_file else tenant.key
        except OSError as error:
            raise LoadTestError(f"the key of {tenant.name}: {error}") from error
        keys[tenant.name] = own or key
    return keys


async def find_dialect(
    scenario: Scenario, admin: Admin, keys: dict[str, str], server: Server
) -> Dialect:
    """Ask the server for its base's name, with each tenant's key.

    Raises:
        LoadTestError: it doesn't answer, refuses a key, or lists no base.
    """
    models = [await admin.models(key) for key in dict.fromkeys(keys.values())]
    bases = [model["id"] for model in models[0] if not model.get("parent")]
    if not bases:
        raise LoadTestError(f"{admin.url}/v1/models lists no base")
    ids = {name: i for i, name in enumerate(scenario.adapters.all_names)}
    return Dialect(bases[0], server, ids if server is Server.LLAMA_CPP else {})


async def ensure_adapters(
    scenario: Scenario, admin: Admin, place: Weights, progress: Callable[[str], None]
) -> dict[str, int]:
    """Register or load what is missing; the live version of each adapter made, where known.

    Raises:
        LoadTestError: an adapter isn't there and can't be brought there.
    """
    listed = {str(model["id"]).rpartition("/")[2] for model in await admin.models()}
    live: dict[str, int] = {}
    has_registry = await admin.has_registry()
    made = scenario.made_adapters()
    for number, (name, part) in enumerate(made.items(), 1):
        progress(f"adapter {number} of {len(made)}: {name}")
        version = await admin.live_version(part.tenant, name) if has_registry else None
        if version is None and name not in listed:
            files = await asyncio.to_thread(place.of, name, 0, part)
            if has_registry:
                version = await admin.register(part.tenant, name, files, promote=True)
            else:
                await admin.load(name, files)
        if version is not None:
            live[name] = version
    parts = [scenario.adapters, *(t.adapters for t in scenario.tenants if t.adapters)]
    wanted = set(itertools.chain.from_iterable(part.names for part in parts))
    unknown = sorted({name for name in wanted if name.rpartition("/")[2] not in listed})
    if unknown:
        raise LoadTestError(f"the server has no adapter {', '.join(unknown)}")
    return live


async def record_golden(
    scenario: Scenario,
    exchange: Exchange,
    truth: Truth,
    dialect: Dialect,
    key: str,
    models: list[str],
) -> None:
    """Ask each model each golden prompt: among many, among others, and some alone.

    What an answer differs by from one batch to another is the noise that `truth` must forgive.

    Raises:
        LoadTestError: one isn't answered.
    """

    async def ask(turnstile: asyncio.Semaphore, model: str, prompt: int) -> Outcome:
        turn = Turn(0, 0, scenario.truth.tokens, golden=prompt)
        body = dialect.adapt(request_body(model, turn, scenario.requests, []))
        outcome = Outcome("", model, 0.0, 0.0, 0.0, turn.tokens_out)
        async with turnstile:
            await exchange.send(make_call("/v1/completions", body, key), outcome)
        if not outcome.ok:
            raise LoadTestError(f"{model}, {GOLDEN[prompt]!r}: {outcome.status} {outcome.detail}")
        return outcome

    asked = [(model, prompt) for model in models for prompt in range(scenario.truth.prompts)]
    others, alone = list(asked), list(asked)
    random.Random(0).shuffle(others)
    random.Random(1).shuffle(alone)
    answers: dict[tuple[str, int], list[Outcome]] = defaultdict(list)
    for pairs, at_once in (
        (asked, ASKED_AT_ONCE),
        (others, ASKED_AT_ONCE),
        (alone[:NUM_ASKED_ALONE], 1),
    ):
        turnstile = asyncio.Semaphore(at_once)
        outcomes = await asyncio.gather(*(ask(turnstile, *pair) for pair in pairs))
        for pair, outcome in zip(pairs, outcomes, strict=True):
            answers[pair].append(outcome)
    for (model, prompt), same in answers.items():
        version = same[0].version if dialect.names_versions and same[0].version else model
        truth.record(version, prompt, [Answer.of(outcome) for outcome in same])
