"""The tokens of a request: they are counted at the engine and settled by the data plane."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field

from server.errors import APIError, Unavailable
from server.request_log.record import RequestRecord, current_record
from server.tenancy.fair_queue import PromptTicket
from server.tenancy.log_probabilities import PromptLogProbabilities
from server.tenancy.prompt_queue import Places, PromptQueue
from server.tenancy.service_tiers import DEFAULT, ServiceTier
from server.tenancy.timing import Timing

LAST_COUNT_SECONDS = 1.0
"""How long a cancelled request may take to leave the engine and still be charged in full."""


def _running_record() -> RequestRecord:
    return current_record.get() or RequestRecord()


@dataclass
class Meter:
    """The tokens of one HTTP request, of all its prompts and choices together.

    It also knows when the engine's work for the request is over. That is when the handler has
    returned its response and none of its prompts runs or waits. The client may still read the
    answer, but the request holds no slot and no place in the prompt queue.
    """

    prompt_queue: PromptQueue
    tenant: str
    weight: float = 1
    input_tokens: int = 0
    output_tokens: int = 0
    timing: Timing | None = None
    record: RequestRecord = field(default_factory=_running_record)
    places: Places | None = None
    """The places that the request holds in the prompt queue."""
    service_tier: ServiceTier = DEFAULT
    names_tier: bool = False
    """Whether the answer names the tier, because the request did."""
    ended_by: APIError | None = None
    """Why the request was ended early, if it was."""
    failure: APIError | None = None
    """Why the engine gave no whole answer, if it didn't."""
    prompt_log_probabilities: PromptLogProbabilities = field(default_factory=PromptLogProbabilities)
    """How many of them the request's prompts may still ask for."""
    _num_open: int = 0
    _all_ended: asyncio.Event = field(default_factory=asyncio.Event)
    _num_expected: int = 0
    _num_answered: int = 0
    _handed_over: bool = False
    _work_over: bool = False
    _on_work_over: list[Callable[[], None]] = field(default_factory=list)
    _checks: list[Callable[[], Awaitable[None]]] = field(default_factory=list)
    _ends: list[Callable[[APIError], None]] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Tokens of prompts and answers together."""
        return self.input_tokens + self.output_tokens

    def expect_answer(self) -> None:
        """Count one more prompt that the handler sends to the engine.

        Raises:
            Unavailable: the engine's work was over, so the adapter may have left its slot.
            APIError: the request was ended early.
        """
        if self.ended_by:
            raise self.ended_by
        if self._work_over:
            raise Unavailable("the request asked the engine again after its answer; try again")
        self._num_expected += 1

    def end_early(self, error: APIError) -> None:
        """End the request, whether it waits or runs. Its client gets `error`."""
        if self.ended_by is None:
            self.ended_by = error
            for end in list(self._ends):
                end(error)

    @contextmanager
    def ending_early(self, end: Callable[[APIError], None]) -> Iterator[None]:
        """Have `end` called if the request has to end early within the context.

        Raises:
            APIError: it was ended before.
        """
        if self.ended_by:
            raise self.ended_by
        self._ends.append(end)
        try:
            yield
        finally:
            self._ends.remove(end)

    def check_before_stream(self, check: Callable[[], Awaitable[None]]) -> None:
        """Have `check` awaited before a streamed response begins."""
        self._checks.append(check)

    async def checked(self) -> None:
        """Await the checks of a request whose response is a stream that has not begun.

        After a stream's first byte an error can't change the status any more. Raises what the
        checks raise.
        """
        for check in self._checks:
            await check()

    def on_work_over(self, callback: Callable[[], None]) -> None:
        """Have `callback` called once, as soon as the engine's work is over."""
        self._on_work_over.append(callback)

    def hand_over(self, *, complete: bool) -> None:
        """Record that the handler has returned its response, which may hold the whole answer."""
        self._handed_over = True
        self._end_work_if_over(complete=complete)

    @asynccontextmanager
    async def admission(
        self,
        input_tokens: int,
        choices: int = 1,
        admitted: asyncio.Future[None] | None = None,
    ) -> AsyncIterator[TokenCounter]:
        """Wait until a prompt may run, and yield the counter for the tokens of its answers.

        The prompt counts as running until the counter's `end`, at the latest until the end of the
        context. `admitted` is as in `PromptQueue.admission`.
        """
        self._num_open += 1
        try:
            self.record.end_stage("prompt")
            async with self.prompt_queue.admission(
                self.tenant,
                self.weight,
                input_tokens,
                choices,
                self.places,
                admitted,
                self.service_tier,
            ) as ticket:
                self.record.end_stage("queue")
                self.input_tokens += input_tokens
                answer = TokenCounter(self, ticket)
                try:
                    yield answer
                finally:
                    answer.end()
        finally:
            self._num_open -= 1
            if not self._num_open:
                self._all_ended.set()

    async def ended(self) -> None:
        """Wait until no prompt of the request runs any more.

        When a client disconnects, vLLM cancels the handler but does not wait for its end.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_COUNT_SECONDS):
                while self._num_open:
                    self._all_ended.clear()
                    await self._all_ended.wait()

    def answered(self) -> None:
        """Record that the engine has computed a prompt's last token."""
        self._num_answered += 1
        self.record.end_stage_again("last_token")
        self._end_work_if_over(complete=False)

    def _end_work_if_over(self, *, complete: bool) -> None:
        all_answered = self._num_answered and self._num_answered >= self._num_expected
        if self._handed_over and (complete or all_answered) and not self._work_over:
            self._work_over = True
            for callback in self._on_work_over:
                callback()


@dataclass
class TokenCounter:
    """Counts the answer to one prompt, which has one choice or more."""

    meter: Meter
    ticket: PromptTicket
    _last: dict[int, float] = field(default_factory=dict)
    """When the latest tokens of each choice arrived."""
    _ended: bool = False

    @property
    def ended(self) -> bool:
        """Return whether the engine is done with the prompt."""
        return self._ended

    def end(self) -> None:
        """End the prompt, because the engine has computed its last token. May be called twice."""
        if not self._ended:
            self._ended = True
            self.meter.prompt_queue.leave(self.ticket)
            self.meter.answered()

    def add(self, tokens: int, choice: int = 0) -> None:
        """Count tokens of a choice as they arrive from the engine."""
        if not tokens:
            return
        meter = self.meter
        if not meter.output_tokens:
            meter.record.end_stage("first_token")
        meter.output_tokens += tokens
        meter.prompt_queue.charge(self.ticket, tokens)
        if timing := meter.timing:
            self._last[choice] = timing.tokens(tokens, self._last.get(choice))


current_meter: ContextVar[Meter | None] = ContextVar("meter", default=None)
"""The meter of the running request, or None for the server's own probes."""
