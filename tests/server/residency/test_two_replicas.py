"""Two replicas on one registry, in any order of events: each serves what its catalog says.

A state machine (hypothesis) changes an adapter through either replica, reads the changes on either
some time later, and opens and ends requests on both. A model of a few lines says what each replica
must know, and which version a request must get. The registries and the residency are real, the
engines are fake ones.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from contextlib import AsyncExitStack
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from shutil import copyfile, rmtree
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from adapters_registry import verdicts
from adapters_registry.check.base import BaseSpec
from adapters_registry.check.static_check import AdapterFacts
from adapters_registry.content.adapter_files import CONFIG_FILE, WEIGHTS_FILE
from adapters_registry.content.store import ContentStore
from adapters_registry.errors import Conflict
from adapters_registry.records.aliases import point_alias, roll_back
from adapters_registry.records.catalog import Target
from adapters_registry.records.retirement import pin_version, retire_version
from adapters_registry.registry import Registry
from server.api.resolve import resolve
from server.auth import Caller
from server.errors import ModelNotFound
from server.residency.leases import Leases
from server.settings import Settings
from tests.long_form import examples
from tests.server.fake_engine import FakeEngine
from tests.tiny import TINY_BASE

FACTS = AdapterFacts(8, [], 1, None, None, [])
HOME = ("default", "home")
CALLER = Caller("default", frozenset({"inference"}), tenant_id="1")
SLOTS, HOST, MOST_VERSIONS = 2, 3, 6
SETTLE_SECONDS = 60
"""The end of everything."""
REPLICAS = st.sampled_from([0, 1])
PICKS = st.integers(0, MOST_VERSIONS - 1)
"""Of the versions that are ready, one."""


@dataclass
class Model:
    """What the registry says."""

    ready: dict[int, bool] = field(default_factory=dict)
    """The versions that are ready, and whether each is pinned."""
    count: int = 0
    live: int | None = None
    previous: int | None = None

    @property
    def pinned(self) -> set[int]:
        return {number for number, is_pinned in self.ready.items() if is_pinned}

    def move(self, number: int | None) -> None:
        if number != self.live:
            self.previous = self.live if number else None
            self.live = number


class Replica:
    """A server without HTTP: registry, engine, residency, and the requests that run on it."""

    def __init__(self, registry: Registry) -> None:
        self.registry, self.engine = registry, FakeEngine()
        self.engine.max_loras, self.engine.max_running = SLOTS, 100
        # The fake engine aborts nothing: requests on a retired version go on until they are ended.
        chosen = Settings(
            max_loras=SLOTS, max_cpu_loras=HOST, slot_quantum_seconds=0, retire_seconds=0
        )
        self.leases = Leases.of(chosen, self.engine, registry)
        self.known = Model()
        """What the registry said when this replica read it last."""
        self.running: list[tuple[int, AsyncExitStack]] = []
        """The version of each request that runs, and what ends it."""

    @property
    def held(self) -> set[int]:
        return {number for number, _ in self.running}


class TwoReplicas(RuleBasedStateMachine):
    schema: Path

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.url = f"sqlite:///{copyfile(self.schema, self.folder / 'registry.db')}"
        self.runner = asyncio.Runner()
        self.model = Model()
        self.replicas = [self.runner.run(self.start(number)) for number in range(2)]

    async def start(self, number: int) -> Replica:
        base = BaseSpec.from_config("tiny", TINY_BASE, max_rank=8)
        content = ContentStore(self.folder / "content")
        return Replica(Registry(self.url, content, base, server_id=f"replica{number}"))

    def teardown(self) -> None:
        try:
            self.come_to_rest()
        finally:
            self.runner.close()
            for replica in self.replicas:
                replica.registry.close()
            rmtree(self.folder)

    # --- what operators do ---

    @initialize()
    def begin_with_three(self) -> None:
        for number in range(3):
            self.register(number % 2, promote=False)
            self.read(0)
            self.read(1)

    @rule(replica=REPLICAS, promote=st.booleans())
    def register(self, replica: int, promote: bool) -> None:
        if self.model.count == MOST_VERSIONS:
            return
        number = self.model.count + 1

        def stage(folder: Path) -> None:
            (folder / CONFIG_FILE).write_text(json.dumps({"content": number}))
            (folder / WEIGHTS_FILE).write_bytes(b"")

        registry = self.replicas[replica].registry
        version, _ = registry.register(*HOME, "test", stage, promote=promote)
        registry.apply(verdicts.claim, version.version_id, registry.server_id)
        registry.apply(verdicts.accept, version.version_id, registry.server_id, FACTS)
        self.model.count = number
        self.model.ready[number] = False
        if promote or self.model.live is None:
            self.model.move(number)
        self.runner.run(self.follow(replica))

    @rule(replica=REPLICAS, pick=PICKS)
    def promote(self, replica: int, pick: int) -> None:
        if number := self.picked(pick):
            self.change(replica, partial(point_alias, targets=[Target(number, 100)]), "live")
            self.model.move(number)
            self.runner.run(self.follow(replica))

    @rule(replica=REPLICAS)
    def go_back(self, replica: int) -> None:
        if self.model.previous in self.model.ready:
            self.change(replica, roll_back)
            self.model.move(self.model.previous)
            self.runner.run(self.follow(replica))

    @rule(replica=REPLICAS, pick=PICKS)
    def retire(self, replica: int, pick: int) -> None:
        if number := self.picked(pick):
            self.change(replica, retire_version, number, force=True)
            del self.model.ready[number]
            if self.model.live == number:
                self.model.move(None)
            self.runner.run(self.follow(replica))

    @rule(replica=REPLICAS, pick=PICKS)
    def pin_or_unpin(self, replica: int, pick: int) -> None:
        """At most one version is pinned, which leaves a slot for the others."""
        pinned, number = self.model.pinned, self.picked(pick)
        if number and pinned <= {number}:
            self.model.ready[number] = not pinned
            self.change(replica, pin_version, number, not pinned)
            self.runner.run(self.follow(replica))

    def picked(self, pick: int) -> int:
        """Return a version that is ready; 0 if there is none."""
        ready = sorted(self.model.ready)
        return ready[pick % len(ready)] if ready else 0

    def change(self, replica: int, operation: Any, *arguments: Any, **options: Any) -> None:
        self.replicas[replica].registry.apply(operation, *HOME, *arguments, **options)

    # --- what happens on a replica ---

    @rule(replica=REPLICAS)
    def read(self, replica: int) -> None:
        """Read what the other replica has changed, as every server does twice a second."""
        self.replicas[replica].registry.refresh()
        self.runner.run(self.follow(replica))

    async def follow(self, index: int) -> None:
        replica = self.replicas[index]
        replica.leases.follow(replica.registry.catalog)
        replica.known = deepcopy(self.model)

    @rule(replica=REPLICAS)
    def ask_by_name(self, replica: int) -> None:
        """Begin a request for what the name means, if a slot can become free for it."""
        self.runner.run(self.begin(self.replicas[replica], None))

    @rule(replica=REPLICAS, pick=PICKS)
    def ask_for_a_version(self, replica: int, pick: int) -> None:
        """Begin a request for a version that is offered as far as the replica knows."""
        if known := sorted(self.replicas[replica].known.ready):
            self.runner.run(self.begin(self.replicas[replica], known[pick % len(known)]))

    @rule(replica=REPLICAS, number=st.integers(1, MOST_VERSIONS))
    def ask_for_a_number(self, replica: int, number: int) -> None:
        """Begin a request for a version that may be retired, or may never have been there."""
        self.runner.run(self.begin(self.replicas[replica], number))

    async def begin(self, replica: Replica, number: int | None) -> None:
        known, name = replica.known, "home" if number is None else f"home@{number}"
        expected = known.live if number is None else number
        if expected is None or expected not in known.ready:
            with pytest.raises(ModelNotFound):
                resolve(name, CALLER, replica.registry.catalog, "base")
            return
        version = resolve(name, CALLER, replica.registry.catalog, "base")
        assert version is not None
        assert version.number == expected
        if len(replica.held | known.pinned | {expected}) > SLOTS:
            return
        held = AsyncExitStack()
        async with asyncio.timeout(SETTLE_SECONDS):
            await held.enter_async_context(replica.leases.lease(version, "default"))
        replica.running.append((expected, held))
        assert version.version_id in replica.engine.slots

    @rule(replica=REPLICAS, index=st.integers(0, 5))
    def end(self, replica: int, index: int) -> None:
        running = self.replicas[replica].running
        if running:
            self.runner.run(self.leave(self.replicas[replica], index % len(running)))

    async def leave(self, replica: Replica, index: int) -> None:
        _, held = replica.running.pop(index)
        await held.aclose()

    @rule(replica=REPLICAS, settles=st.booleans())
    def restart_engine(self, replica: int, settles: bool) -> None:
        """The engine dies. What ran on it ends, and the next engine gets the pinned versions."""
        one = self.replicas[replica]
        self.runner.run(self.restarted(one))
        if settles:
            self.runner.run(self.settle())
            assert one.known.pinned <= one.engine.slots, "pins are restored"

    async def restarted(self, replica: Replica) -> None:
        engine = replica.engine
        engine.slots.clear()
        engine.host.clear()
        engine.generation += 1
        while replica.running:
            await self.leave(replica, 0)
        replica.leases.follow(replica.registry.catalog)

    @rule()
    def come_to_rest(self) -> None:
        """When both have read everything and nothing runs, only what is offered is in memory."""
        for replica in self.replicas:
            replica.registry.refresh()
            while replica.running:
                self.runner.run(self.leave(replica, 0))
        for index in range(2):
            self.runner.run(self.follow(index))
        self.runner.run(self.settle())
        for replica in self.replicas:
            assert replica.engine.host <= self.model.ready.keys(), "the others were retired"
            assert len(replica.engine.host) <= HOST
            assert self.model.pinned <= replica.engine.slots
            assert not any(row["leases"] for row in replica.leases.snapshot())

    async def settle(self) -> None:
        """Wait until no replica has anything under way."""
        own = asyncio.current_task()
        async with asyncio.timeout(SETTLE_SECONDS):
            while others := asyncio.all_tasks() - {own}:
                await asyncio.wait(others)

    # --- what always holds ---

    @invariant()
    def what_runs_is_in_a_slot(self) -> None:
        for replica in self.replicas:
            assert replica.held <= replica.engine.slots

    @invariant()
    def the_budgets_hold(self) -> None:
        for replica in self.replicas:
            assert len(replica.engine.slots) <= SLOTS
            assert replica.engine.slots <= replica.engine.host

    @invariant()
    def the_catalog_is_as_it_was_read(self) -> None:
        for replica in self.replicas:
            catalog = replica.registry.catalog
            adapter = catalog.adapters.get(HOME)
            ready = {n: v.pinned for n, v in adapter.ready.items()} if adapter else {}
            assert ready == replica.known.ready
            live = adapter.live.number if adapter and adapter.live else None
            assert live == replica.known.live


def test_two_replicas(newest_schema: Path) -> None:
    """The version ids are the numbers: the first one is 1, and one is taken per version."""

    class OnSQLite(TwoReplicas):
        schema = newest_schema

    chosen = settings(
        max_examples=examples(15),
        stateful_step_count=40,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        # To look for a shorter sequence takes minutes, and the time at which work in threads ends
        # is another in each run. So the first failure is shown as it is.
        phases=[Phase.explicit, Phase.generate],
    )
    run_state_machine_as_test(OnSQLite, settings=chosen)


def test_a_rollback_without_a_version_before_it_is_refused(newest_schema: Path) -> None:
    """So the machine above tells apart what the registry allows."""
    machine = type("OnSQLite", (TwoReplicas,), {"schema": newest_schema})()
    try:
        machine.register(0, promote=True)
        with pytest.raises(Conflict):
            machine.change(1, roll_back)
    finally:
        machine.teardown()
