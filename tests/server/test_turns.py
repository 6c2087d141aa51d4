"""Turns in the engine, as tasks take them."""

import asyncio

from server.turns import Turns


async def test_turns_are_taken_and_given_back_whatever_happens() -> None:
    turns, order = Turns(1), []
    may_end = asyncio.Event()

    async def request(tenant: str) -> None:
        async with turns.turn(tenant, 1, 10) as ticket:
            order.append(tenant)
            turns.charge(ticket, 5)
            await may_end.wait()

    first = asyncio.create_task(request("flood"))
    waiting = [asyncio.create_task(request("flood")) for _ in range(2)]
    await asyncio.sleep(0)
    calm = asyncio.create_task(request("calm"))
    await asyncio.sleep(0.01)
    assert order == ["flood", "calm"], "it has nothing running"
    waiting[0].cancel()
    first.cancel()
    calm.cancel()
    await asyncio.sleep(0.01)
    assert order == ["flood", "calm", "flood"]
    may_end.set()
    await waiting[1]
    async with asyncio.timeout(5):
        await request("calm")
