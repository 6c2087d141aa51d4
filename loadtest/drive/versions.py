"""How a server under test changes an adapter's version: by our registry, or by vLLM's reloading."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass, field
from typing import Protocol

from loadtest.drive.admin import Admin
from loadtest.drive.preparation import Weights
from loadtest.errors import LoadTestError
from loadtest.plan.scenario import Adapters


class Versions(Protocol):
    """Versions by the scenario's numbers: 0 is what was live when the run began.

    All raise LoadTestError where the server doesn't do it.
    """

    async def register(self, name: str, number: int, part: Adapters) -> str:
        """Bring a version there, not live; the model by which it can be asked for."""

    async def promote(self, name: str, number: int, part: Adapters) -> None:
        """Make it what the name means."""

    async def roll_back(self, name: str, number: int, part: Adapters) -> None:
        """Make what was live before it what the name means."""

    async def retire(self, name: str, number: int, part: Adapters) -> None:
        """Take it out of service."""

    def public_name(self, name: str, number: int, part: Adapters) -> str:
        """What answers of this version are known as."""


@dataclass
class Registered:
    """Our registry's versions, whose numbers the server gives."""

    admin: Admin
    place: Weights
    live: dict[str, int]
    """The server's number of each adapter's first live version."""
    _numbers: dict[tuple[str, int], int] = field(default_factory=dict)

    async def register(self, name: str, number: int, part: Adapters) -> str:
        """Upload it; the server's number becomes known."""
        files = self.place.of(name, number, part)
        registered = await self.admin.register(part.tenant, name, files, promote=False)
        self._numbers[name, number] = registered
        return f"{name}@{registered}"

    async def promote(self, name: str, number: int, part: Adapters) -> None:
        """Point `live` to it."""
        await self.admin.promote(part.tenant, name, self._number(name, number))

    async def roll_back(self, name: str, number: int, part: Adapters) -> None:
        """Point `live` back."""
        self._number(name, number)
        await self.admin.roll_back(part.tenant, name)

    async def retire(self, name: str, number: int, part: Adapters) -> None:
        """Delete the version."""
        await self.admin.retire(part.tenant, name, self._number(name, number))

    def public_name(self, name: str, number: int, part: Adapters) -> str:
        """As responses name it."""
        return f"{part.tenant}/{name}@{self._number(name, number)}"

    def _number(self, name: str, number: int) -> int:
        found = self.live.get(name) if number == 0 else self._numbers.get((name, number))
        if found is None:
            raise LoadTestError(f"{name} has no such version: its registration failed")
        return found


@dataclass
class Reloaded:
    """vLLM's own server: a name is unloaded and loaded again from other files.

    Each version is loaded under a name of its own too, to ask it for golden answers. Between
    unloading and loading there is no such model: that is this way's price, and it is counted.
    """

    admin: Admin
    place: Weights
    in_place: bool = False
    """A version's files replace those of the one before, under the same path."""

    async def register(self, name: str, number: int, part: Adapters) -> str:
        """Load it under a name of its own."""
        model = self.public_name(name, number, part)
        with contextlib.suppress(LoadTestError):  # a run before may have left it
            await self.admin.unload(model)
        await self.admin.load(model, self.place.of(name, number, part))
        return model

    async def promote(self, name: str, number: int, part: Adapters) -> None:
        """Load the name from its files."""
        files = self.place.of(name, number, part)
        if self.in_place:
            files = shutil.copytree(
                files, self.place.directory / f"{name}-live", dirs_exist_ok=True
            )
        await self.admin.unload(name)
        await self.admin.load(name, files)

    async def roll_back(self, name: str, number: int, part: Adapters) -> None:
        """The same as a promotion of it."""
        await self.promote(name, number, part)

    async def retire(self, name: str, number: int, part: Adapters) -> None:
        """Unload its own name; the first has none."""
        if number:
            await self.admin.unload(self.public_name(name, number, part))

    def public_name(self, name: str, number: int, part: Adapters) -> str:
        """The first is known by the adapter's name only."""
        return f"{name}--{number}" if number else name
