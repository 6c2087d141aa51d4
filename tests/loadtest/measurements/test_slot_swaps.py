"""Memory while adapters take each other's slots."""

import itertools

from loadtest.drive.random_adapters import LlamaShape
from loadtest.measurements import slot_swaps
from tests.loadtest.fake_server import FakeServer, measured
from tests.tiny import TINY_BASE

SHAPE = LlamaShape.from_config(TINY_BASE)


def test_memory_grows_from_the_first_tenth_on() -> None:
    samples = [(0, 500), (100, 1000), (200, 1100), (1000, 1050)]
    _, result = slot_swaps.report([(n, size << 20) for n, size in samples], {"disk": 1000})
    assert result["growth"] == 0.05


async def test_swaps_are_counted_not_requests() -> None:
    fake, sizes = FakeServer(slots=2), itertools.count(1000 << 20, 1 << 20)
    async with measured(fake.app()) as server:
        _, result = await slot_swaps.run(
            server,
            SHAPE,
            lambda _: None,
            num_adapters=4,
            num_swaps=40,
            memory_bytes=lambda: next(sizes),
        )
    assert 40 <= result["found"]["disk"] < 40 + slot_swaps.CLIENTS
    assert result["found"]["slot"] > 0
    assert list(result["memory_mib"])[:3] == ["0", "4", "8"]
