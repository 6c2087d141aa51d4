"""The 4-bit comparison's own arithmetic."""

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from loadtest.measurements import four_bit
from loadtest.measurements.four_bit import ChatAnswer
from tests.loadtest.fake_server import measured


def test_ratios_are_medians_of_each_rounds_own() -> None:
    values = {
        "decode, base, tokens/s": {"bf16": [100.0, 10.0, 50.0], "4-bit": [90.0, 8.0, 20.0]},
        "smart-home, exact match, adapter": {"bf16": [0.5], "4-bit": [0.25]},
    }
    _, result = four_bit._report(values)
    assert result["rows"] == {
        "decode, base, tokens/s": {"bf16": 50.0, "4-bit": 20.0, "ratio": 0.8},
        "smart-home, exact match, adapter": {"bf16": 0.5, "4-bit": 0.25},
    }


async def test_agreement_counts_the_answers_tokens_only() -> None:
    ranks = {1: 9, 2: 9, 3: 1, 4: 2, 5: 1}

    async def answer(request: Request) -> Response:
        logprobs = [None, *({str(token): {"rank": rank}} for token, rank in ranks.items())]
        return JSONResponse({"choices": [{"prompt_logprobs": logprobs}]})

    said = ChatAnswer("text", prompt=[0, 1, 2], tokens=[3, 4, 5])
    app = Starlette(routes=[Route("/v1/completions", answer, methods=["POST"])])
    async with measured(app) as server:
        assert await four_bit._agreement(server, "base", [said]) == pytest.approx(2 / 3)
