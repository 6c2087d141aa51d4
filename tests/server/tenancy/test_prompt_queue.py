"""Turns in the engine, as tasks take them."""

import asyncio

import pytest

from server.errors import OverQuota
from server.tenancy.fair_queue import PromptTicket
from server.tenancy.prompt_queue import PromptQueue


async def test_turns_are_taken_and_given_back_whatever_happens() -> None:
    turns, order = PromptQueue(1, 100), []
    may_end = asyncio.Event()

    async def request(tenant: str) -> None:
        async with turns.admission(tenant, 1, 10) as ticket:
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


async def test_an_answers_first_token_lets_the_next_prompt_of_its_tenant_in() -> None:
    turns, may_end = PromptQueue(8, 15), asyncio.Event()
    tickets: dict[str, list[PromptTicket]] = {"flood": [], "calm": []}

    async def request(tenant: str) -> None:
        async with turns.admission(tenant, 1, 10) as ticket:
            tickets[tenant].append(ticket)
            await may_end.wait()

    async with asyncio.TaskGroup() as running:
        for tenant in ("calm", "flood", "flood", "flood"):
            running.create_task(request(tenant))
        await asyncio.sleep(0.01)
        for num_begun in (1, 2, 3):
            assert len(tickets["flood"]) == num_begun
            turns.charge(tickets["flood"][-1], 1)
            await asyncio.sleep(0.01)
        may_end.set()


async def test_who_waits_is_counted_by_what_it_waits_for() -> None:
    queue, may_end = PromptQueue(2, 15), asyncio.Event()

    async def request() -> None:
        async with queue.admission("acme", 1, 100):
            await may_end.wait()

    async with asyncio.TaskGroup() as running:
        running.create_task(request())
        await asyncio.sleep(0)
        running.create_task(request())
        await asyncio.sleep(0.01)
        assert queue.num_waiting() == (0, 1), "there is room, but its first prompt isn't computed"
        for ticket in list(queue._open):
            if ticket not in queue._admissions:
                queue.charge(ticket, 1)
        await asyncio.sleep(0.01)
        assert queue.num_waiting() == (0, 0)
        running.create_task(request())
        await asyncio.sleep(0.01)
        assert queue.num_waiting() == (1, 0), "the engine is full"
        may_end.set()
    assert queue.num_waiting() == (0, 0)


async def test_a_tenant_may_have_so_many_waiting_and_no_more() -> None:
    queue, may_end = PromptQueue(1, 100, max_waiting=3), asyncio.Event()

    async def request(choices: int) -> None:
        with queue.places("flood", choices) as places:
            async with queue.admission("flood", 1, 10, choices, places):
                await may_end.wait()

    running = asyncio.create_task(request(1))
    await asyncio.sleep(0.01)
    waiting = [asyncio.create_task(request(1)) for _ in range(3)]
    await asyncio.sleep(0.01)
    with pytest.raises(OverQuota, match="has 3 answers waiting"):
        await request(1)
    with queue.places("calm", 9):
        pass
    waiting.pop().cancel()
    await asyncio.sleep(0.01)
    waiting.append(asyncio.create_task(request(1)))
    await asyncio.sleep(0.01)
    may_end.set()
    await asyncio.gather(running, *waiting)
    with queue.places("flood", 3):
        pass
