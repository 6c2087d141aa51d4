import asyncio

from server.lifecycle import Lifecycle


async def test_drain_waits_for_running_requests() -> None:
    lifecycle = Lifecycle()
    with lifecycle.running():
        drained = asyncio.create_task(lifecycle.drain(5))
        await asyncio.sleep(0)
        assert lifecycle.draining
        assert not drained.done()
    assert await drained


async def test_drain_gives_up_at_the_deadline() -> None:
    lifecycle = Lifecycle()
    with lifecycle.running():
        assert not await lifecycle.drain(0.01)


async def test_who_leaves_still_works_until_routers_have_had_notice() -> None:
    lifecycle = Lifecycle()
    drained = asyncio.create_task(lifecycle.drain(5, notice_seconds=0.01))
    await asyncio.sleep(0)
    assert lifecycle.leaving
    assert not lifecycle.draining
    assert await drained
    assert lifecycle.draining


async def test_drain_of_an_idle_server_is_immediate() -> None:
    assert await Lifecycle().drain(0)
