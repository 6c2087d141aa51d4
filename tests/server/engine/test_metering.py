"""Tokens are counted where vLLM's handlers call the engine."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.metrics.stats import RequestStateStats

from server.engine.metering import meter
from server.metering import METER, Meter
from server.turns import Turns

PROMPT = {"prompt_token_ids": [1, 2, 3]}


class Client:
    """Gives two choices of five tokens each, in the way that the parameters ask for."""

    def __init__(self, *, stops_at: int | None = None) -> None:
        self.closed = 0
        self.stops_at = stops_at
        self.output_processor = SimpleNamespace(request_states={})

    async def abort(self, request_id: str) -> None:
        states = self.output_processor.request_states
        if any(state.external_req_id == request_id for state in states.values()):
            states.clear()

    async def generate(
        self, _prompt: Any, sampling: SamplingParams, request_id: str
    ) -> AsyncIterator[Any]:
        try:
            for number in range(1, 6):
                detokenizer = SimpleNamespace(num_output_tokens=lambda number=number: number)
                for i in range(2):
                    self.output_processor.request_states[i] = SimpleNamespace(
                        external_req_id=request_id, request_index=i, detokenizer=detokenizer
                    )
                if number == self.stops_at:
                    await asyncio.Event().wait()
                if sampling.output_kind == RequestOutputKind.FINAL_ONLY and number < 5:
                    continue
                new = sampling.output_kind == RequestOutputKind.DELTA
                token_ids = [7] if new else [7] * number
                yield SimpleNamespace(
                    outputs=[SimpleNamespace(index=i, token_ids=token_ids) for i in range(2)],
                    metrics=RequestStateStats(first_token_ts=10.0, last_token_ts=10.0 + number / 4),
                )
        except asyncio.CancelledError:
            await self.abort(request_id)
            raise
        finally:
            self.closed += 1


@pytest.mark.parametrize("kind", list(RequestOutputKind))
async def test_every_kind_of_output(kind: RequestOutputKind) -> None:
    client: Any = Client()
    meter(client)
    METER.set(current := Meter(Turns(4), "acme"))
    sampling = SamplingParams(output_kind=kind)
    for number in (1, 2):
        assert [output async for output in client.generate(PROMPT, sampling, "id")]
        assert (current.input_tokens, current.output_tokens) == (3 * number, 10 * number)


async def test_a_client_that_goes_away_is_charged_so_far_and_ends_the_request() -> None:
    client: Any = Client()
    meter(client)
    METER.set(current := Meter(Turns(4), "acme"))
    outputs = client.generate(PROMPT, SamplingParams(output_kind=RequestOutputKind.DELTA), "id")
    await anext(outputs)
    await outputs.aclose()
    assert (current.tokens, client.closed) == (3 + 2, 1)


@pytest.mark.parametrize("kind", list(RequestOutputKind))
async def test_what_is_cut_off_is_charged_once(kind: RequestOutputKind) -> None:
    client: Any = Client(stops_at=4)
    meter(client)
    METER.set(current := Meter(Turns(4), "acme"))

    async def answer() -> None:
        async for _ in client.generate(PROMPT, SamplingParams(output_kind=kind), "id"):
            pass

    running = asyncio.create_task(answer())
    await asyncio.sleep(0)
    for _ in range(2):
        await client.abort("somebody else's")
    running.cancel()
    await current.ended()
    in_steps = kind == RequestOutputKind.DELTA
    assert (current.input_tokens, current.output_tokens) == (3, 6 if in_steps else 8)


async def test_the_servers_own_requests_are_not_counted() -> None:
    client: Any = Client()
    meter(client)
    METER.set(None)
    sampling = SamplingParams(output_kind=RequestOutputKind.DELTA)
    assert [output async for output in client.generate(PROMPT, sampling, "id")]
