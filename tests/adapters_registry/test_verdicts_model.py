"""Two servers on one database, in any order of events: no version changes state without cause.

A state machine (hypothesis) does to the registry what clients, crashes and operators do, and to a
model of a few lines what should come of it. After every step the two agree, through both servers.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from shutil import copyfile, rmtree
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from sqlalchemy import update

from adapters_registry import verdicts
from adapters_registry.check.base import BaseSpec
from adapters_registry.check.static_check import AdapterFacts
from adapters_registry.content.adapter_files import CONFIG_FILE, WEIGHTS_FILE
from adapters_registry.content.store import ContentStore
from adapters_registry.errors import CheckedElsewhere, Conflict, InvalidTargets, Reason
from adapters_registry.records.aliases import point_alias, roll_back
from adapters_registry.records.catalog import Target
from adapters_registry.records.retirement import retire_version
from adapters_registry.records.tables import UNDER_CHECK, Version, VersionState, now
from adapters_registry.registry import Registry
from tests.long_form import examples
from tests.postgres import Postgres
from tests.tiny import TINY_BASE

FACTS = AdapterFacts(8, [], 1, None, None, [])
HOME = ("default", "home")
SERVERS = st.sampled_from([0, 1])
NUMBERS = st.integers(1, 6)


@dataclass
class Modelled:
    """What the model knows of one version."""

    promote: bool
    asked_at: int
    """How many moves of `live` there had been when it was registered."""
    state: VersionState = VersionState.PENDING
    owner: int | None = None
    lapsed: bool = False


@dataclass
class Model:
    versions: dict[int, Modelled] = field(default_factory=dict)
    moves: list[int | None] = field(default_factory=list)
    """Moves of `live`: the number of the version whose verdict moved it; None: an operator did."""
    live: int | None = None
    previous: int | None = None

    def move(self, number: int | None, cause: int | None) -> None:
        if number != self.live:
            self.previous = self.live if number else None
            self.live = number
            self.moves.append(cause)


class TwoServers(RuleBasedStateMachine):
    def __init__(self, new_database: Callable[[Path], str]) -> None:
        """`new_database` makes an empty database, with or without the given folder."""
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.url = new_database(self.folder)
        self.base = BaseSpec.from_config("tiny", TINY_BASE, max_rank=8)
        self.count = 0
        self.lives = [0, 0]
        self.servers = [self.start(0), self.start(1)]
        self.model = Model()

    def start(self, index: int) -> Registry:
        content = ContentStore(self.folder / "content")
        server_id = f"server{index}-{self.lives[index]}"
        return Registry(self.url, content, self.base, server_id=server_id)

    def teardown(self) -> None:
        for server in self.servers:
            server.close()
        rmtree(self.folder)

    def register(self, server: int, content: int, promote: bool) -> None:
        def stage(folder: Path) -> None:
            (folder / CONFIG_FILE).write_text(json.dumps({"content": content}))
            (folder / WEIGHTS_FILE).write_bytes(b"")

        self.servers[server].register(*HOME, "test", stage, promote=promote)

    @rule(server=SERVERS, promote=st.booleans())
    def register_new(self, server: int, promote: bool) -> None:
        if (number := len(self.model.versions) + 1) > 6:
            return
        self.register(server, number, promote)
        self.model.versions[number] = Modelled(promote, len(self.model.moves))

    @rule(server=SERVERS, number=NUMBERS, promote=st.booleans())
    def register_again(self, server: int, number: int, promote: bool) -> None:
        version = self.model.versions.get(number)
        if version is None or version.state in (VersionState.REJECTED, VersionState.RETIRED):
            return
        self.register(server, number, promote)
        if promote:
            version.promote, version.asked_at = True, len(self.model.moves)
            if version.state is VersionState.READY:
                self.model.move(number, None)

    @rule(server=SERVERS, number=NUMBERS)
    def claim(self, server: int, number: int) -> None:
        version = self.model.versions.get(number)
        if version is None:
            return
        allowed = version.state is VersionState.PENDING or (
            version.state is VersionState.CHECKING and (version.owner == server or version.lapsed)
        )
        self.expect(allowed, server, verdicts.claim, number)
        if allowed:
            version.state, version.owner, version.lapsed = VersionState.CHECKING, server, False

    @rule(server=SERVERS, number=NUMBERS, passes=st.booleans())
    def decide(self, server: int, number: int, passes: bool) -> None:
        version = self.model.versions.get(number)
        if version is None:
            return
        allowed = version.state is VersionState.CHECKING and version.owner == server
        if not passes:
            self.expect(allowed, server, verdicts.reject, number, [Reason("x", "x")])
            version.state = VersionState.REJECTED if allowed else version.state
            return
        self.expect(allowed, server, verdicts.accept, number, FACTS)
        if allowed:
            version.state = VersionState.READY
            since = self.model.moves[version.asked_at :]
            stands = all(cause is not None and cause < number for cause in since)
            if stands and (version.promote or self.model.live is None):
                self.model.move(number, number)

    @rule(server=SERVERS, number=NUMBERS)
    def put_off(self, server: int, number: int) -> None:
        version = self.model.versions.get(number)
        if version is None:
            return
        self.servers[server].apply(verdicts.release, self.id_of(number), self.id_of_server(server))
        if version.state is VersionState.CHECKING and version.owner == server:
            version.state, version.owner = VersionState.PENDING, None

    @rule(number=NUMBERS)
    def lease_runs_out(self, number: int) -> None:
        version = self.model.versions.get(number)
        if version is None or version.state is not VersionState.CHECKING:
            return
        with self.servers[0].session() as session:
            row = update(Version).where(Version.id == self.id_of(number))
            session.execute(row.values(checked_until=now() - verdicts.LEASE))
        version.lapsed = True

    @rule(server=SERVERS, forgets_id=st.booleans())
    def restart(self, server: int, forgets_id: bool) -> None:
        self.servers[server].close()
        self.lives[server] += forgets_id
        self.servers[server] = self.start(server)
        for version in self.model.versions.values() if forgets_id else ():
            if version.owner == server:
                version.owner = -1
        numbers = {version.number for version in self.servers[server].unfinished()}
        assert numbers == {
            number
            for number, version in self.model.versions.items()
            if version.state is VersionState.PENDING
            or (version.state is VersionState.CHECKING and version.owner == server)
            or (version.state is VersionState.CHECKING and version.lapsed)
        }

    @rule(server=SERVERS, number=NUMBERS)
    def promote(self, server: int, number: int) -> None:
        version = self.model.versions.get(number)
        if not self.model.versions:
            return
        point = partial(point_alias, targets=[Target(number, 100)])
        if version is None or version.state is not VersionState.READY:
            with pytest.raises(InvalidTargets):
                self.servers[server].apply(point, *HOME, "live")
            return
        self.servers[server].apply(point, *HOME, "live")
        self.model.move(number, None)

    @rule(server=SERVERS)
    def roll_back(self, server: int) -> None:
        if self.model.live is None:
            return
        target = self.model.previous
        if target is None or self.model.versions[target].state is not VersionState.READY:
            with pytest.raises(Conflict):
                self.servers[server].apply(roll_back, *HOME)
            return
        self.servers[server].apply(roll_back, *HOME)
        self.model.move(target, None)

    @rule(server=SERVERS, number=NUMBERS)
    def retire(self, server: int, number: int) -> None:
        version = self.model.versions.get(number)
        if version is None:
            return
        if version.state in UNDER_CHECK:
            with pytest.raises(Conflict):
                self.servers[server].apply(retire_version, *HOME, number, force=True)
            return
        self.servers[server].apply(retire_version, *HOME, number, force=True)
        if version.state is VersionState.READY:
            version.state = VersionState.RETIRED
            if self.model.live == number:
                self.model.move(None, None)

    @invariant()
    def everyone_agrees(self) -> None:
        for server in self.servers:
            server.refresh()
            assert len(server.catalog.adapters) == bool(self.model.versions)
            if not self.model.versions:
                continue
            ids = [self.id_of(number) for number in self.model.versions]
            found = [server.read_version(version_id) for version_id in ids]
            states = {version.number: version.state for version in found if version}
            assert states == {n: version.state for n, version in self.model.versions.items()}
            adapter = server.get_adapter(*HOME)
            ready = [n for n, v in self.model.versions.items() if v.state is VersionState.READY]
            assert sorted(adapter.ready) == ready
            assert (adapter.live.number if adapter.live else None) == self.model.live

    def expect(
        self, allowed: bool, server: int, operation: Any, number: int, *arguments: Any
    ) -> None:
        """Apply an operation, which must succeed exactly if the model allows it."""
        call = (operation, self.id_of(number), self.id_of_server(server), *arguments)
        if allowed:
            self.servers[server].apply(*call)
        else:
            with pytest.raises(CheckedElsewhere):
                self.servers[server].apply(*call)

    def id_of_server(self, index: int) -> str:
        return self.servers[index].server_id

    def id_of(self, number: int) -> int:
        return number  # the first database id is 1, and one is taken per version


EXAMPLES = settings(
    max_examples=examples(20),
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def test_two_servers_on_sqlite(newest_schema: Path) -> None:
    class OnSQLite(TwoServers):
        def __init__(self) -> None:
            super().__init__(
                lambda folder: f"sqlite:///{copyfile(newest_schema, folder / 'registry.db')}"
            )

    run_state_machine_as_test(OnSQLite, settings=EXAMPLES)


def test_two_servers_on_postgresql(postgres: Postgres) -> None:
    class OnPostgreSQL(TwoServers):
        def __init__(self) -> None:
            super().__init__(lambda _: postgres.migrated_database())

    run_state_machine_as_test(OnPostgreSQL, settings=settings(EXAMPLES, max_examples=examples(5)))
