"""How a server changes an adapter's version: by our registry, or vLLM's way, by reloading."""

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
    """Versions by the scenario's numbers. Number 0 was live when the run began.

    All methods raise LoadTestError if the server refuses the change.
    """

    async def register(self, name: str, number: int, part: Adapters) -> str:
        """Add a version that isn't live yet. Returns the name by which it can be asked for."""

    async def promote(self, name: str, number: int, part: Adapters) -> None:
        """Point the name to a version."""

    async def roll_back(self, name: str, number: int, part: Adapters) -> None:
        """Point the name back to the version that was live before."""

    async def retire(self, name: str, number: int, part: Adapters) -> None:
        """Take a version out of service."""

    def public_name(self, name: str, number: int, part: Adapters) -> str:
        """Return how answers name this version."""


@dataclass
class RegistryVersions:
    """Versions of our registry, which numbers them itself."""

    admin: Admin
    place: Weights
    live: dict[str, int]
    """The registry's number of the version of each adapter that was live first."""
    _numbers: dict[tuple[str, int], int] = field(default_factory=dict)

    async def register(self, name: str, number: int, part: Adapters) -> str:
        """Upload a version, and keep the number that it gets."""
        files = self.place.of(name, number, part)
        registered = await self.admin.register(part.tenant, name, files, promote=False)
        self._numbers[name, number] = registered
        return f"{name}@{registered}"

    async def promote(self, name: str, number: int, part: Adapters) -> None:
        """Point `live` to a version."""
        await self.admin.promote(part.tenant, name, self._number(name, number))

    async def roll_back(self, name: str, number: int, part: Adapters) -> None:
        """Roll `live` back."""
        self._number(name, number)
        await self.admin.roll_back(part.tenant, name)

    async def retire(self, name: str, number: int, part: Adapters) -> None:
        """Retire a version."""
        await self.admin.retire(part.tenant, name, self._number(name, number))

    def public_name(self, name: str, number: int, part: Adapters) -> str:
        """Return the name that our responses give."""
        return f"{part.tenant}/{name}@{self._number(name, number)}"

    def _number(self, name: str, number: int) -> int:
        found = self.live.get(name) if number == 0 else self._numbers.get((name, number))
        if found is None:
            raise LoadTestError(f"{name} has no such version: its registration failed")
        return found


@dataclass
class ReloadedVersions:
    """Versions on vLLM's own server: a name is unloaded, and loaded again from other files.

    Each version is also loaded under a name of its own, to ask it for golden answers. Between
    unloading and loading there is no such model, and requests for it fail. The run counts them.
    """

    admin: Admin
    place: Weights
    in_place: bool = False
    """Whether a version's files replace those of the version before, under the same path."""

    async def register(self, name: str, number: int, part: Adapters) -> str:
        """Load a version under a name of its own."""
        model = self.public_name(name, number, part)
        with contextlib.suppress(LoadTestError):  # an earlier run may have left it
            await self.admin.unload(model)
        await self.admin.load(model, self.place.of(name, number, part))
        return model

    async def promote(self, name: str, number: int, part: Adapters) -> None:
        """Load the name from a version's files."""
        files = self.place.of(name, number, part)
        if self.in_place:
            files = shutil.copytree(
                files, self.place.directory / f"{name}-live", dirs_exist_ok=True
            )
        await self.admin.unload(name)
        await self.admin.load(name, files)

    async def roll_back(self, name: str, number: int, part: Adapters) -> None:
        """Promote the version that was live before."""
        await self.promote(name, number, part)

    async def retire(self, name: str, number: int, part: Adapters) -> None:
        """Unload the version's own name. Version 0 has none."""
        if number:
            await self.admin.unload(self.public_name(name, number, part))

    def public_name(self, name: str, number: int, part: Adapters) -> str:
        """Return the version's own name. Version 0 has only the adapter's."""
        return f"{name}--{number}" if number else name
