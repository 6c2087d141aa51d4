"""The 4-bit comparison's own arithmetic."""

import httpx
import pytest

from loadtest.measurements import four_bit
from loadtest.measurements.client import ChatAnswer, Client


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


async def test_agreement_counts_the_answers_tokens_only(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = {1: 9, 2: 9, 3: 1, 4: 2, 5: 1}

    def answer(request: httpx.Request) -> httpx.Response:
        logprobs = [None, *({str(token): {"rank": rank}} for token, rank in ranks.items())]
        return httpx.Response(200, json={"choices": [{"prompt_logprobs": logprobs}]})

    client = Client("http://server", "key")
    client._http = httpx.AsyncClient(
        transport=httpx.MockTransport(answer), base_url="http://server"
    )
    said = ChatAnswer("text", prompt=[0, 1, 2], tokens=[3, 4, 5])
    assert await four_bit._agreement(client, "base", [said]) == pytest.approx(2 / 3)
