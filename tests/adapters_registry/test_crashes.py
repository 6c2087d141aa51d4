"""`kill -9` at every step of a registration: nothing half done, nothing acknowledged is lost.

A child process registers an adapter and is killed by itself at its n-th step; a step is whatever
the interpreter announces of files (PEP 578), and every SQL statement and commit. Then the registry
is opened again, as the next start would.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Engine, event

from adapters_registry.check.base import BaseSpec
from adapters_registry.content.adapter_files import digest_of
from adapters_registry.content.store import ContentStore
from adapters_registry.records.tables import VersionState
from adapters_registry.registry import Registry
from tests.adapters_registry.adapters import register, take_in
from tests.tiny import AdapterFactory

FILE_EVENTS = ("open", "os.rename", "os.mkdir", "os.chmod", "os.remove", "os.rmdir", "os.truncate")
SQL_EVENTS = ("before_cursor_execute", "commit", "rollback")
MAX_STEPS = 400


def killed_at(step: int, engine: Engine, work: Callable[[], None]) -> bool:
    """Do the work in a child that kills itself at a step; whether it came that far."""
    child = os.fork()
    if child == 0:
        count = 0

        def on_step(*_: object, **__: object) -> None:
            nonlocal count
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)

        engine.dispose(close=False)  # its connections are the parent's
        for name in SQL_EVENTS:
            event.listen(engine, name, on_step)
        sys.addaudithook(lambda name, _: on_step() if name in FILE_EVENTS else None)
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_killed_at_every_step(
    tmp_path: Path, tiny_base: BaseSpec, make_adapter: AdapterFactory, database_url: str
) -> None:
    content, source = ContentStore(tmp_path / "content"), make_adapter(seed=2)
    acknowledged = tmp_path / "acknowledged"
    registry = Registry(database_url, content, tiny_base, server_id="server")
    first = register(registry, make_adapter(seed=1))
    steps, versions, new = 0, [first], 0

    def work() -> None:
        version, _ = take_in(registry, source, promote=True)
        acknowledged.write_text(str(version.number))
        registry.accept(version, registry.check_files(version))

    while killed_at(steps + 1, registry.engine, work):
        steps += 1
        assert steps < MAX_STEPS
        registry.close()
        registry = Registry(database_url, content, tiny_base, server_id="server")
        adapter = registry.get_adapter("default", "home")
        assert not list((content.root / "staging").iterdir())
        assert adapter.live is not None
        for version in adapter.versions.values():
            assert digest_of(content.path(version.digest))[0] == version.digest
        number = int(acknowledged.read_text() or 0) if acknowledged.exists() else 0
        assert not number or number in adapter.versions, "what was acknowledged is there"
        acknowledged.unlink(missing_ok=True)
        for version in registry.unfinished():
            registry.accept(version, registry.check_files(version))
        assert all(
            version.state is VersionState.READY
            for version in registry.get_adapter("default", "home").versions.values()
        )
        if len(adapter.versions) > len(versions):
            versions = list(adapter.versions.values())
            new += 1
            source = make_adapter(seed=2 + new)
    assert steps > 20
    assert new > 5, "it was killed on either side of the acknowledgement"
    registry.close()
