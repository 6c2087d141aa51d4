"""Tenants on the real engine: what one has sent tells nothing to another."""

import asyncio
import time

import httpx
import pytest

from tests.real_engine.questions import LIGHTS, ask, say
from tests.real_engine.running_server import RunningServer

ENDLESS = {"ignore_eos": True}


def key_of(server: RunningServer, tenant: str) -> str:
    server.admin("POST", "/admin/tenants", json={"name": tenant})
    made = server.admin("POST", "/admin/keys", json={"tenant": tenant})
    return str(made.json()["key"])


def prefix_hits(server: RunningServer) -> float:
    time.sleep(1.1)  # the page is made once a second
    lines = httpx.get(server.url + "/metrics", timeout=30).text.splitlines()
    name = "vllm:prefix_cache_hits_total"
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def test_the_prefix_cache_is_divided_by_tenants(server: RunningServer) -> None:
    secret = "The launch code of the lighthouse is not to be told to anybody. " * 40

    def hits_of(key: str, **options: str) -> float:
        before = prefix_hits(server)
        body = {"model": "base", "prompt": secret, "max_tokens": 1, **options}
        headers = {"Authorization": f"Bearer {key}"}
        url = server.url + "/v1/completions"
        assert httpx.post(url, json=body, headers=headers, timeout=120).status_code == 200
        return prefix_hits(server) - before

    acme, other = key_of(server, "acme"), key_of(server, "other")
    assert hits_of(acme) == 0
    assert hits_of(acme) > 0, "a tenant has its own prefixes again"
    assert hits_of(other) == 0
    assert hits_of(other, cache_salt="acme") == 0
    assert hits_of(acme, cache_salt="mine") == 0
    assert secret[:30] not in server.log.read_text()
    assert acme.split("-", 2)[2] not in server.log.read_text()


@pytest.mark.parametrize("body", [{}, {"n": 2}])
def test_an_answer_that_is_cut_off_is_charged(server: RunningServer, body: dict[str, int]) -> None:
    tenant = f"impatient-{body.get('n', 1)}"
    key = key_of(server, tenant)

    def output_tokens() -> int:
        rows = server.admin("GET", f"/admin/usage?tenant={tenant}").json()["data"]
        return sum(row["output_tokens"] for row in rows)

    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            server.url + "/v1/completions",
            json={
                "model": "base",
                "prompt": "Once",
                "max_tokens": 4000,
                "ignore_eos": True,
                **body,
            },
            headers={"Authorization": f"Bearer {key}"},
            timeout=5,
        )
    deadline = time.monotonic() + 30
    while not output_tokens() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert 0 < output_tokens() < 4000


async def test_another_s_long_prompts_are_not_waited_for(server: RunningServer) -> None:
    """They are computed in parts, one at a time, whoever asked first."""
    flood, calm = key_of(server, "long-winded"), key_of(server, "terse")
    ended: list[str] = []

    async def ask(key: str, prompt: str) -> None:
        response = await client.post(
            server.url + "/v1/completions",
            json={"model": "base", "prompt": prompt, "max_tokens": 1},
            headers={"Authorization": f"Bearer {key}"},
        )
        assert response.status_code == 200, response.text
        ended.append(key)

    async with httpx.AsyncClient(timeout=600) as client, asyncio.TaskGroup() as requests:
        for number in range(6):
            requests.create_task(ask(flood, f"{number}. " + "And so it went on and on. " * 80))
        await asyncio.sleep(0.2)
        await ask(calm, "Hello")
        assert len(ended) <= 3
    assert len(ended) == 7


@pytest.mark.parametrize("what", ["/admin/adapters/default/smart-home", "/admin/tenants/default"])
def test_what_is_suspended_is_refused_on_all_routes_and_running_answers_finish(
    server: RunningServer, what: str
) -> None:
    question = {"messages": say(LIGHTS), "max_tokens": 4}
    bodies: dict[str, dict[str, object]] = {
        "/v1/chat/completions": question,
        "/v1/completions": {"prompt": LIGHTS, "max_tokens": 4},
        "/v1/responses": {"input": LIGHTS, "max_output_tokens": 4},
        "/v1/messages": question,
    }
    running = iter(
        ask(server, "smart-home", LIGHTS, stream=True, max_tokens=300, extra_body=ENDLESS)
    )
    next(running)
    assert server.admin("PUT", f"{what}/suspension", json={"reason": "review"}).status_code == 200
    try:
        for path, body in bodies.items():
            for stream in (False, True):
                request = {"model": "smart-home", "stream": stream, **body}
                refused = server.admin("POST", path, json=request)
                assert refused.status_code == 503
                assert refused.json()["error"]["code"] == "suspended"
                assert "review" in refused.json()["error"]["message"]
                assert (refused.json().get("type") == "error") == (path == "/v1/messages")
        chunks = list(running)
        assert chunks[-1].choices[0].finish_reason == "length"
    finally:
        server.admin("DELETE", f"{what}/suspension")
    for path, body in bodies.items():
        answered = server.admin("POST", path, json={"model": "smart-home", **body})
        assert answered.status_code == 200, answered.text
