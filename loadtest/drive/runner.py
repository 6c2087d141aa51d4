"""Carries out a schedule: sends each request when it is due, and keeps its outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

from loadtest.drive.request import Call, RequestSender, make_call
from loadtest.drive.server_kind import Dialect
from loadtest.outcome.golden import GoldenAnswer, GoldenSet, contradiction
from loadtest.outcome.request_outcome import UNFINISHED, Outcome
from loadtest.plan.prompts import request_body
from loadtest.plan.scenario import Scenario
from loadtest.plan.schedule import ClosedLoop, Schedule, Session, Turn

PAUSE_AFTER_ERROR_SECONDS = 0.1
"""So that a client of a closed loop doesn't hammer a server that refuses it."""
TIMER_SECONDS = 0.0005
"""Timers count whole milliseconds and are late by one at most, so the runner aims half of one
earlier. The time of a request that is sent early counts from when it was sent."""
LOOK_SECONDS = 0.05
"""How often the runner checks whether the run is over."""


class Runner:
    """One run of a scenario against one server."""

    def __init__(
        self,
        scenario: Scenario,
        sender: RequestSender,
        truth: GoldenSet,
        keys: dict[str, str],
        dialect: Dialect,
    ) -> None:
        """`keys` has a key for each tenant."""
        self.outcomes: list[Outcome] = []
        self._scenario, self._sender, self._truth = scenario, sender, truth
        self._keys, self._dialect = keys, dialect
        self._requests = {t.name: t.requests for t in scenario.tenants if t.requests}
        limit = scenario.limits.max_in_flight
        self._turnstile = asyncio.Semaphore(limit) if limit else nullcontext()
        self._open: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self.in_flight = 0

    async def run(self, schedule: Schedule, stop: asyncio.Event) -> bool:
        """Send everything, in bounded time. Returns False if `stop` was set meanwhile."""
        self._start(self._dispatch(schedule.sessions))
        for loop in schedule.closed_loops:
            for _ in range(loop.concurrency):
                self._start(self._client(loop))
        stopped = asyncio.create_task(stop.wait())
        deadline = self._scenario.duration_seconds + self._scenario.limits.drain_seconds
        try:
            while self._open and not stopped.done() and self._sender.now() < deadline:
                await asyncio.wait([stopped], timeout=LOOK_SECONDS)
                if self._failure is not None:
                    raise self._failure
        finally:
            await _cancel(stopped, *self._open)
        return not stop.is_set()

    def _start(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._open.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._open.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._failure = task.exception()

    async def _dispatch(self, sessions: Iterator[Session]) -> None:
        """Open loop: start each session at its time, whatever became of earlier ones."""
        for session in sessions:
            call = self._call(session, session.turns[0], [])
            wait = session.at - self._sender.now() - TIMER_SECONDS
            if wait > 0:
                await asyncio.sleep(wait)
            due = min(session.at, self._sender.now())
            self._start(self._converse(session, due, call))

    async def _client(self, loop: ClosedLoop) -> None:
        """Closed loop: start the next session when the last one is over."""
        while (now := self._sender.now()) < self._scenario.duration_seconds:
            session = next(loop.sessions)
            call = self._call(session, session.turns[0], [])
            if not await self._converse(session, now, call):
                await asyncio.sleep(PAUSE_AFTER_ERROR_SECONDS)

    async def _converse(self, session: Session, due: float, call: Call) -> bool:
        """Carry out a session that begins with this call. Returns whether it went well."""
        for number, turn in enumerate(session.turns):
            if number:
                due += turn.think_seconds
                await asyncio.sleep(due - self._sender.now())
            outcome = await self._ask(session, turn, due, call)
            if not outcome.ok:
                return not outcome.is_error
            due = outcome.done
            if number + 1 < len(session.turns):
                history = [*call.body["messages"], {"role": "assistant", "content": outcome.text}]
                call = self._call(session, session.turns[number + 1], history)
        return True

    async def _ask(self, session: Session, turn: Turn, due: float, call: Call) -> Outcome:
        model = self._dialect.name_of(session.model)
        now = self._sender.now()
        outcome = Outcome(session.tenant, model, due, now, now, turn.tokens_out)
        outcome.is_check = turn.golden is not None
        self.in_flight += 1
        try:
            async with self._turnstile:
                outcome.sent = self._sender.now()
                await self._sender.send(call, outcome)
        except asyncio.CancelledError:
            outcome.status, outcome.done = UNFINISHED, self._sender.now()
            raise
        finally:
            self.in_flight -= 1
            self._finish(outcome, turn)
        return outcome

    def _call(self, session: Session, turn: Turn, history: list[dict[str, Any]]) -> Call:
        requests = self._requests.get(session.tenant, self._scenario.requests)
        model = self._dialect.name_of(session.model)
        body = self._dialect.adapt(request_body(model, turn, requests, history))
        path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
        return make_call(
            path,
            body,
            self._keys[session.tenant],
            hang_up_after=turn.hang_up_after,
            wants_all_tokens=requests.ignore_eos,
        )

    def _finish(self, outcome: Outcome, turn: Turn) -> None:
        """Judge the answer, and keep the outcome without its tokens."""
        if not self._dialect.names_versions:
            outcome.version = outcome.model
        if outcome.ok and (wrong := contradiction(outcome)):
            outcome.status, outcome.detail = wrong, f"asked {outcome.model}, got {outcome.version}"
        if outcome.ok and turn.golden is not None:
            answer = GoldenAnswer.of(outcome)
            versions = self._truth.expected(outcome)
            if wrong := self._truth.judge(versions, turn.golden, answer):
                outcome.status = wrong
                outcome.detail = self._truth.explain(versions, turn.golden, answer)
        outcome.tokens = []
        self.outcomes.append(outcome)


async def _cancel(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
