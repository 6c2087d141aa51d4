"""Before the load: the server answers, has the adapters, and its golden answers are recorded."""

from __future__ import annotations

import asyncio
import itertools
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from loadtest.drive.admin import Admin, base_of
from loadtest.drive.random_adapters import LlamaShape, make_adapter
from loadtest.drive.request import RequestSender, make_call
from loadtest.drive.server_kind import Dialect, ServerKind
from loadtest.errors import LoadTestError
from loadtest.outcome.golden import GoldenAnswer, GoldenSet
from loadtest.outcome.request_outcome import Outcome
from loadtest.plan.prompts import GOLDEN, request_body
from loadtest.plan.scenario import Adapters, Scenario
from loadtest.plan.schedule import DEFAULT_TENANT, golden_turn

NUM_CROWDS = 8
"""How many models are also asked concurrently, to measure noise."""
CROWD = 16
"""How many requests are in each such batch."""


@dataclass
class Weights:
    """Random weights on disk, made on first use. The same name and version get the same weights."""

    directory: Path
    shape: LlamaShape

    def of(self, name: str, version: int, adapters: Adapters) -> Path:
        """Return the directory of a version, counted from 0."""
        directory = self.directory / f"{name}-{version}"
        if not directory.is_dir():
            seed = zlib.crc32(directory.name.encode())
            make_adapter(directory, self.shape, rank=adapters.rank, seed=seed, size=adapters.update)
        return directory


@contextmanager
def weights(shape: LlamaShape, directory: Path | None = None) -> Iterator[Weights]:
    """Provide a place for weights. It is kept only if a directory is given."""
    with tempfile.TemporaryDirectory(prefix="loadtest-") as temporary:
        place = directory or Path(temporary)
        place.mkdir(parents=True, exist_ok=True)
        yield Weights(place, shape)


def tenant_keys(scenario: Scenario, key: str) -> dict[str, str]:
    """Return each tenant's key: its own, or else the one given.

    Raises:
        LoadTestError: a key's file can't be read.
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
    scenario: Scenario, admin: Admin, keys: dict[str, str], server: ServerKind
) -> Dialect:
    """Ask the server for its base's name, with each tenant's key.

    Raises:
        LoadTestError: no answer came, a key is refused, or no base is listed.
    """
    models = [await admin.models(key) for key in dict.fromkeys(keys.values())]
    ids = {name: i for i, name in enumerate(scenario.adapters.all_names)}
    return Dialect(
        base_of(admin.url, models[0]), server, ids if server is ServerKind.LLAMA_CPP else {}
    )


async def ensure_adapters(
    scenario: Scenario, admin: Admin, place: Weights, progress: Callable[[str], None]
) -> dict[str, int]:
    """Register or load the adapters that are missing.

    Returns the number of each made adapter's live version, where the server has a registry.

    Raises:
        LoadTestError: an adapter is missing and can't be registered or loaded.
    """
    listed = await admin.model_names()
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
        elif version is None and not has_registry and scenario.churn.any:
            # An earlier run may have left another version under this name.
            await admin.unload(name)
            await admin.load(name, await asyncio.to_thread(place.of, name, 0, part))
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
    sender: RequestSender,
    truth: GoldenSet,
    dialect: Dialect,
    key: str,
    models: list[str],
) -> None:
    """Ask each model each golden prompt, and some models the same prompts concurrently.

    The answers to concurrent requests show how large the noise is. Only one model is asked at a
    time: a server that mixes models up must not do so in the golden answers.

    Raises:
        LoadTestError: a request fails.
    """

    async def ask(model: str, prompt: int) -> Outcome:
        turn = golden_turn(scenario.truth, prompt)
        body = dialect.adapt(request_body(model, turn, scenario.requests, []))
        outcome = Outcome("", model, 0.0, 0.0, 0.0, turn.tokens_out)
        await sender.send(make_call("/v1/completions", body, key), outcome)
        if not outcome.ok:
            raise LoadTestError(f"{model}, {GOLDEN[prompt]!r}: {outcome.status} {outcome.detail}")
        return outcome

    prompts = range(scenario.truth.prompts)
    for index, model in enumerate(models):
        answers = [[outcome] for outcome in await asyncio.gather(*(ask(model, p) for p in prompts))]
        if index < NUM_CROWDS:
            crowd = [p for p in prompts for _ in range(CROWD // len(prompts))]
            for p, outcome in zip(
                crowd, await asyncio.gather(*(ask(model, p) for p in crowd)), strict=True
            ):
                answers[p].append(outcome)
        for p, same in enumerate(answers):
            version = same[0].version if dialect.names_versions and same[0].version else model
            truth.record(version, p, [GoldenAnswer.of(outcome) for outcome in same])
