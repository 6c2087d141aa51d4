"""First tokens by tier."""

from loadtest.drive.random_adapters import LlamaShape
from loadtest.measurements import cold_start
from tests.loadtest.fake_server import FakeServer, measured
from tests.tiny import TINY_BASE


def test_tiers_are_told_apart_and_rare_ones_left_out() -> None:
    times = {
        "idle server": {
            "slot": [10.0, 20.0, 30.0, 40.0, 50.0],
            "disk": [130.0] * 6,
            "host": [1.0],
        }
    }
    _, result = cold_start.report(times, 10)
    rows = result["first_token_ms"]["idle server"]
    assert rows["slot"]["median"] == 30
    assert rows["disk"] == {"requests": 6, "median": 130, "p90": 130, "over_slot": 100}
    assert "host" not in rows


async def test_every_answer_is_counted_where_its_header_says() -> None:
    shape = LlamaShape.from_config(TINY_BASE)
    async with measured(FakeServer(slots=2).app()) as server:
        _, result = await cold_start.run(server, shape, lambda _: None, stream_tokens=4)
    num_asked = cold_start.ROUNDS * cold_start.NUM_ADAPTERS
    for rows in result["first_token_ms"].values():
        assert rows["base, no adapter"]["requests"] == num_asked
        assert rows["slot"]["requests"] >= num_asked
        assert rows["disk"]["requests"] >= num_asked
        assert rows["slot"]["requests"] + rows["disk"]["requests"] == 3 * num_asked
    assert result["adapter_bytes"] > 1000
