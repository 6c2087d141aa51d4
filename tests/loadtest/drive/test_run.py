"""Whole runs against the stub: what is right counts, what is broken is named, and they end."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from loadtest.drive.run import Observer, Target, run
from loadtest.drive.runner import Runner
from loadtest.errors import LoadTestError
from loadtest.outcome.request_outcome import Outcome
from loadtest.outcome.run_record import Run
from loadtest.plan.schedule import make_schedule
from loadtest.report.measures import summarise
from tests.loadtest.conftest import StubServer
from tests.loadtest.stub_server import KEY

TRUTH = {"share": 0.5, "prompts": 2}


def statuses(result: Run) -> Counter[str]:
    return Counter(outcome.status for outcome in result.outcomes)


async def test_a_right_server_answers_the_whole_schedule(server: StubServer) -> None:
    result = await server.run(truth=TRUTH)
    planned = list(make_schedule(result.scenario).sessions)
    assert statuses(result) == {"ok": len(planned)}
    asked = sorted(result.outcomes, key=lambda outcome: outcome.due)
    assert [outcome.model for outcome in asked] == [s.model or "base" for s in planned]
    for outcome, session in zip(asked, planned, strict=True):
        assert session.at - 0.002 <= outcome.due <= session.at  # timers count milliseconds
    for outcome in result.outcomes:
        assert outcome.tokens_out == outcome.asked_tokens == len(outcome.gaps) + 1
        assert outcome.due <= outcome.woken <= outcome.sent
    summary = summarise(result)
    checked = sum(outcome.is_check for outcome in result.outcomes)
    assert summary["truth"]["right"] == summary["truth"]["checked"] == checked > 0
    assert summary["complete"]
    assert summary["server"]["stub_requests_total"]["last"] > 0


@pytest.mark.parametrize(
    ("fault", "kinds"),
    [
        ("foreign", {"wrong_adapter"}),
        ("stall", {"stall", "timeout", "ok"}),  # two tokens or fewer are whole before the stall
        ("silent", {"stall", "timeout"}),
        ("reset", {"reset", "ok"}),
        ("garbage", {"garbage", "ok"}),
        ("truncated", {"truncated", "ok"}),
        ("error_event", {"stream_error", "ok"}),
        ("overloaded", {"http_503"}),
        ("short", {"short"}),
    ],
)
async def test_each_fault_is_named_and_never_a_success(
    server: StubServer, fault: str, kinds: set[str]
) -> None:
    server.stub.fault = fault
    limits = {"stall_seconds": 0.5, "drain_seconds": 5} if fault in ("stall", "silent") else {}
    result = await server.run(adapters={"count": 3}, limits=limits)
    found = statuses(result)
    assert kinds - {"ok", "timeout"} <= found.keys() <= kinds
    for outcome in result.outcomes:
        if outcome.ok:
            assert outcome.tokens_out == outcome.asked_tokens
        else:
            assert outcome.detail


@pytest.mark.parametrize("fault", ["wrong_adapter", "mixed"])
async def test_answers_of_the_wrong_weights_are_caught(server: StubServer, fault: str) -> None:
    """The server says the right version, and computes with another."""

    class BreakIt(Observer):
        def started(self, runner: Runner, now: object) -> None:
            server.stub.fault = fault

    result = await run(
        (await server.run(truth=TRUTH)).scenario, server.target(), asyncio.Event(), BreakIt()
    )
    wrong = {"wrong_adapter": "wrong_adapter", "mixed": "mixed_version"}[fault]
    for outcome in result.outcomes:
        assert outcome.status == (wrong if outcome.is_check else "ok")
    assert summarise(result)["truth"][wrong] > 0


async def test_versions_change_under_the_load_and_every_answer_is_checked(
    server: StubServer,
) -> None:
    result = await server.run(
        duration_seconds=1.5,
        truth=TRUTH,
        churn={"registrations_per_minute": 400, "promotions_per_minute": 400},
    )
    assert {record.kind for record in result.churn} == {"registration", "promotion"}
    assert not any(record.error for record in result.churn)
    assert statuses(result).keys() == {"ok"}
    assert len({o.version for o in result.outcomes if o.model == "load-0"}) > 1
    assert result.truth.num_unchecked == 0


async def test_a_server_that_forgets_a_promotion_is_caught(server: StubServer) -> None:
    resolve = server.stub.resolve
    server.stub.resolve = lambda model: resolve(  # type: ignore[method-assign]
        model if "@" in model or model == "base" else f"{model}@1"
    )
    result = await server.run(
        duration_seconds=1.5,
        churn={"registrations_per_minute": 400, "promotions_per_minute": 400},
    )
    assert statuses(result)["stale_version"] > 0


async def test_clients_hang_up_and_that_is_no_error(server: StubServer) -> None:
    server.stub.gap_seconds = 0.01
    result = await server.run(
        requests={"disconnect_share": 0.5, "output": {"kind": "fixed", "tokens": 8}}
    )
    found = statuses(result)
    assert found.keys() == {"ok", "hung_up"}
    assert summarise(result)["requests"]["error_rate"] == 0
    await asyncio.sleep(0.1)
    assert server.stub.open_streams == 0


async def test_closed_loop_keeps_its_clients_busy(server: StubServer) -> None:
    server.stub.first_token_seconds = 0.02
    result = await server.run(arrivals={"process": "closed", "concurrency": 3})
    edges = sorted([(o.sent, 1) for o in result.outcomes] + [(o.done, -1) for o in result.outcomes])
    running = highest = 0
    for _, step in edges:
        running += step
        highest = max(highest, running)
    assert highest == 3
    assert statuses(result).keys() == {"ok"}


async def test_conversations_carry_their_history(server: StubServer) -> None:
    result = await server.run(
        requests={"api": "chat", "turns": 3, "output": {"kind": "fixed", "tokens": 4}},
        duration_seconds=0.3,
    )
    assert len(result.outcomes) == 3 * len(list(make_schedule(result.scenario).sessions))
    assert statuses(result).keys() == {"ok"}


async def test_requests_beyond_the_limit_wait_in_the_client(server: StubServer) -> None:
    server.stub.first_token_seconds = 0.05
    limits = {"max_in_flight": 1, "drain_seconds": 0.1}
    result = await server.run(limits=limits)
    ok = [outcome for outcome in result.outcomes if outcome.ok]
    assert max(outcome.sent - outcome.woken for outcome in ok) > 0.05
    assert statuses(result)["unfinished"] > 0  # 60/s can't be done at 20/s


async def test_ctrl_c_keeps_what_there_is(server: StubServer) -> None:
    stop = asyncio.Event()
    scenario = (await server.run()).scenario.model_copy(update={"duration_seconds": 3600.0})
    before = server.stub.num_requests

    async def press() -> None:
        while server.stub.num_requests < before + 20:
            await asyncio.sleep(0.01)
        stop.set()

    pressing = asyncio.create_task(press())
    result = await run(scenario, server.target(), stop)
    await pressing
    assert not result.complete
    assert statuses(result)["ok"] > 0
    assert len(result.outcomes) < 3600


async def test_a_wrong_key_is_said(server: StubServer) -> None:
    scenario = (await server.run()).scenario
    with pytest.raises(LoadTestError, match="refuses the key"):
        await run(scenario, Target(server.url, "wrong"), asyncio.Event())


async def test_an_unreachable_server_is_said(server: StubServer) -> None:
    scenario = (await server.run()).scenario
    with pytest.raises(LoadTestError, match=r"no answer from http://127\.0\.0\.1:1"):
        await run(scenario, Target("http://127.0.0.1:1", KEY), asyncio.Event())


async def test_an_unknown_adapter_is_said(server: StubServer) -> None:
    with pytest.raises(LoadTestError, match="no adapter nobody"):
        await server.run(adapters={"names": ["nobody"]})


async def test_vllms_own_server_is_given_adapters_its_way(server: StubServer) -> None:
    server.stub.ours = False
    result = await server.run()
    assert statuses(result).keys() == {"ok"}
    assert list(server.stub.adapters) == ["load-0", "load-1", "load-2"]


async def test_tenants_use_their_own_keys(server: StubServer) -> None:
    with pytest.raises(LoadTestError, match="refuses the key"):
        await server.run(tenants=[{"name": "a"}, {"name": "b", "key": "wrong"}])
    result = await server.run(tenants=[{"name": "a"}, {"name": "b", "key": KEY}])
    assert {outcome.tenant for outcome in result.outcomes} == {"a", "b"}


def test_an_outcome_that_never_began_has_no_first_token() -> None:
    outcome = Outcome("t", "m", 1.0, 1.0, 1.0, 8)
    assert (outcome.ttft, outcome.tpot) == (None, None)
