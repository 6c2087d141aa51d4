"""Golden answers under churn: whatever comes and goes, each answer is its own version's.

Twenty-four adapters in four slots, their versions promoted, rolled back, retired, replaced, pinned
and prefetched while hundreds of requests run, some of whose clients go away. See `codes` for why
an answer can be compared to the letter. `make test-long` sends more requests.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.long_form import LONG
from tests.real_engine.codes import BASE_CODE, answer, code_of, write_adapter, write_base
from tests.real_engine.running_server import RunningServer

ADAPTERS, SLOTS, HOST = 24, 4, 10
REQUESTS = 450 if LONG else 200
AT_ONCE = 32
KINDS = ("promote", "roll back", "replace", "pin", "prefetch")
PREFIX = "Tell me at last, who are you? " * 6
"""Longer than a KV block, so that prefixes are shared."""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("codes")
    write_base(directory / "base")
    return directory


@pytest.fixture(scope="module")
def tiny(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    server = RunningServer(
        tmp_path_factory.mktemp("churn") / "var",
        *("--base", str(directory / "base")),
        *("--max-loras", str(SLOTS), "--max-cpu-loras", str(HOST)),
        *("--slot-quantum-seconds", "0.5", "--kv-cache-gib", "0.02"),
        *("--local-roots", str(directory)),
    )
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.stop()


@dataclass
class Fleet:
    """The adapters, what each version's answer is, and what came of the requests."""

    http: httpx.AsyncClient
    directory: Path
    codes: dict[str, str] = field(default_factory=lambda: {"base": BASE_CODE})
    """By what a response calls its model."""
    outcomes: Counter[str] = field(default_factory=Counter)
    tiers: Counter[str] = field(default_factory=Counter)

    async def register(self, name: str, *, promote: bool = False) -> int:
        number = len(self.codes)
        path = self.directory / str(number)
        write_adapter(path, number)
        body = {"name": name, "source": str(path), "promote": promote}
        self.codes[f"new {number}"] = ""  # taken, whoever registers meanwhile
        response = await self.http.post("/admin/adapters?wait=true", json=body)
        assert response.status_code == 201, response.text
        version = int(response.json()["version"])
        del self.codes[f"new {number}"]
        self.codes[f"default/{name}@{version}"] = code_of(number)
        return version

    async def ask(self, model: str, *, tokens: int = 40, leave_after: int = 0) -> str | None:
        """Stream an answer and compare it; which model it was. None: the client left early."""
        body = {"model": model, "prompt": PREFIX, "max_tokens": tokens, "temperature": 0}
        text, said = "", ""
        async with self.http.stream("POST", "/v1/completions", json={**body, "stream": True}) as r:
            assert r.status_code == 200, (model, await r.aread())
            self.tiers[r.headers.get("x-adapter-tier", "base")] += 1
            chunks = 0
            async for line in r.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                chunk = json.loads(line.removeprefix("data: "))
                said = said or chunk["model"]
                assert chunk["model"] == said
                text += chunk["choices"][0]["text"]
                chunks += 1
                if chunks == leave_after:
                    self.outcomes["left"] += 1
                    return None
        assert text == answer(self.codes[said], tokens), (model, said, text)
        if (number := r.headers.get("x-adapter-version")) is not None:
            assert said.endswith(f"@{number}")
        self.outcomes["right"] += 1
        return said

    async def alias(self, name: str, version: int) -> None:
        body = {"targets": [{"version": version}]}
        response = await self.http.put(f"/admin/adapters/default/{name}/aliases/live", json=body)
        assert response.status_code == 200, response.text

    async def admin(self, method: str, path: str) -> None:
        response = await self.http.request(method, f"/admin/adapters/default/{path}")
        assert response.is_success, response.text


async def change_things(fleet: Fleet, rng: random.Random, done: asyncio.Event) -> Counter[str]:
    """Promote, roll back, replace and retire, pin and prefetch, as long as requests run."""
    changes: Counter[str] = Counter()
    while not done.is_set() or len(changes) < len(KINDS):
        name = f"a{rng.randrange(ADAPTERS)}"
        kind = rng.choice(KINDS)
        if kind == "promote":
            version = rng.choice([1, 2])
            if f"default/{name}@{version}" in fleet.codes and int(name[1:]) >= 6:
                await fleet.alias(name, version)
                said = await fleet.ask(name, tokens=4)
                assert said == f"default/{name}@{version}", "the first after the flip"
        elif kind == "roll back" and int(name[1:]) >= 6:
            # Adapters whose alias hasn't moved yet have nothing to go back to: 409.
            await fleet.http.post(f"/admin/adapters/default/{name}/rollback")
        elif kind == "replace" and len(fleet.codes) < 110:
            name = f"a{rng.randrange(6)}"
            version = await fleet.register(name, promote=True)
            await fleet.admin("DELETE", f"{name}/versions/{version - 1}")
        elif kind == "pin":
            live = (await fleet.http.get(f"/admin/adapters/default/{name}")).json()["live"]
            await fleet.admin("PUT", f"{name}/versions/{live}/pin")
            await fleet.ask(name, tokens=2)
            await fleet.admin("DELETE", f"{name}/versions/{live}/pin")
        elif kind == "prefetch" and int(name[1:]) >= 6:
            await fleet.admin("POST", f"{name}/versions/1/prefetch")
        changes[kind] += 1
        await asyncio.sleep(0.05)
    return changes


async def load(fleet: Fleet, rng: random.Random, num_requests: int) -> Counter[str]:
    """Requests for aliases, versions and the base, `AT_ONCE` at a time, amid changes."""
    places, done = asyncio.Semaphore(AT_ONCE), asyncio.Event()

    async def one() -> None:
        number = rng.randrange(ADAPTERS)
        model = rng.choice(["base", f"a{number}", f"a{number}", f"a{number}@live"])
        if number >= 6 and rng.random() < 0.2:
            model = f"a{number}@{rng.choice([1, 2])}"
        leave_after = rng.choice([0, 0, 0, 0, 0, 3])
        async with places:
            await fleet.ask(model, tokens=rng.randrange(5, 60), leave_after=leave_after)

    changes = asyncio.create_task(change_things(fleet, rng, done))
    try:
        await asyncio.gather(*(one() for _ in range(num_requests)))
    finally:
        done.set()
    return await changes


async def rest(fleet: Fleet) -> list[dict[str, Any]]:
    """What is resident when nothing runs any more; the engine says the same."""
    for _ in range(100):
        found = (await fleet.http.get("/admin/residency")).json()
        rows: list[dict[str, Any]] = found["data"]
        engine = found["engine"]
        models = {row["model"] for row in rows}
        in_slot = {row["model"] for row in rows if row["tier"] == "slot"}
        busy = any(row["leases"] or row["state"] != "ready" for row in rows)
        # The two were read one after the other: what differs must soon be the same.
        if not busy and models == set(engine["host"]) and in_slot <= set(engine["slots"]):
            return rows
        await asyncio.sleep(0.1)
    raise AssertionError(f"not at rest: {found}")


def memory(server: RunningServer) -> int:
    return sum(process.memory_info().rss for process in server.engine_processes())


async def test_every_answer_is_its_own_versions(tiny: RunningServer, directory: Path) -> None:
    rng = random.Random(5)
    headers = {"Authorization": f"Bearer {tiny.key}"}
    async with httpx.AsyncClient(base_url=tiny.url, headers=headers, timeout=120) as http:
        fleet = Fleet(http, directory)
        for number in range(ADAPTERS):
            await fleet.register(f"a{number}", promote=True)
            if number >= 6:
                await fleet.register(f"a{number}")
        for model in list(fleet.codes):  # alone: `ask` compares with what was written down
            assert await fleet.ask(model) == model
        fleet.outcomes.clear()
        await load(fleet, rng, REQUESTS // 2)  # what only grows at first has grown then
        await rest(fleet)
        before = memory(tiny)
        changes = await load(fleet, rng, REQUESTS)
        resident = await rest(fleet)
        metrics = (await http.get("/metrics")).text
        after = memory(tiny)

    assert sum(fleet.outcomes.values()) >= REQUESTS * 3 // 2
    assert fleet.outcomes["left"] > REQUESTS / 10
    assert min(changes[kind] for kind in ("promote", "roll back", "replace", "pin")) > 0, changes
    assert min(fleet.tiers[tier] for tier in ("slot", "host", "disk")) > 0, fleet.tiers
    assert len(resident) <= HOST
    assert sum(row["tier"] == "slot" for row in resident) <= SLOTS
    assert not any(row["pinned"] for row in resident)
    leases = [line for line in metrics.splitlines() if line.startswith("loraplex_leases{")]
    assert leases
    assert all(line.endswith(" 0.0") for line in leases)
    # These are small: what adapters take is for `test_loading` to measure.
    assert after < 1.1 * before, f"{before / 1e6:.0f} MB became {after / 1e6:.0f}"
    log = tiny.log.read_text()
    assert "Traceback" not in log
    assert "ERROR" not in log


def test_values_of_another_model_would_show(directory: Path) -> None:
    """The measure itself: an answer that reads another model's prefix isn't the golden one."""
    from peft import PeftModel

    tokenizer = AutoTokenizer.from_pretrained(directory / "base")
    tokens = tokenizer(PREFIX, return_tensors="pt")
    base = AutoModelForCausalLM.from_pretrained(directory / "base", dtype=torch.bfloat16)
    write_adapter(directory / "own", 7)
    write_adapter(directory / "other", 8)
    model = PeftModel.from_pretrained(base, directory / "own", adapter_name="own")
    model.load_adapter(directory / "other", adapter_name="other")

    def next_letter(of: str, prefix: str | None) -> str:
        """What a model says after a prefix whose first half another one has read."""
        half, cache = tokens.input_ids.shape[1] // 2, None
        if prefix is not None:
            with _as(model, prefix):
                cache = model(tokens.input_ids[:, :half]).past_key_values
        start = 0 if prefix is None else half
        with _as(model, of):
            logits = model(tokens.input_ids[:, start:], past_key_values=cache).logits
        return str(tokenizer.decode(logits[0, -1].argmax()))

    for of, first in (("own", code_of(7)[0]), ("base", BASE_CODE[0])):
        assert next_letter(of, None) == next_letter(of, of) == first
        assert next_letter(of, "other") == "!"
    assert next_letter("own", "base") == "!"


def _as(model: Any, name: str) -> Any:
    """The model as an adapter has it, or as the base is."""
    if name == "base":
        return model.disable_adapter()
    model.set_adapter(name)
    return torch.no_grad()
