"""What a real engine's server does beside answering: leases, routes, processors, metrics."""

import os
import time
from typing import Any

import httpx
import jsonschema
import psutil
import pytest

from server.api.metrics_page import MAX_AGE_SECONDS
from server.engine.cpu import openmp_variables, read_machine
from tests.real_engine.questions import LIGHTS, ask, say
from tests.real_engine.running_server import RunningServer


def test_a_disconnected_stream_gives_its_lease_back(server: RunningServer) -> None:
    stream = ask(
        server, "smart-home", LIGHTS, stream=True, max_tokens=2000, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    assert (
        'loraplex_leases{adapter="default/smart-home"} 1.0' in server.admin("GET", "/metrics").text
    )
    stream.close()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if (
            'loraplex_leases{adapter="default/smart-home"} 0.0'
            in server.admin("GET", "/metrics").text
        ):
            return
        time.sleep(0.1)
    raise AssertionError("the lease of a client that went away was kept")


def test_the_gauge_of_adapters_is_ours_alone(server: RunningServer) -> None:
    ask(server, "smart-home", LIGHTS)
    lines = server.admin("GET", "/metrics").text.splitlines()
    (gauge,) = [line for line in lines if line.startswith("vllm:lora_requests_info")]
    assert "default/smart-home" in gauge


def test_a_client_that_goes_away_gives_its_lease_back(server: RunningServer) -> None:
    body = {"model": "icd10-chapter", "messages": say("hi"), "max_tokens": 2000, "ignore_eos": True}
    headers = {"Authorization": f"Bearer {server.key}"}
    url = f"{server.url}/v1/chat/completions"
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(url, json=body, headers=headers, timeout=2)
    deadline = time.monotonic() + 10
    gone = 'code="499",endpoint="/v1/chat/completions"'
    while gone not in (text := server.admin("GET", "/metrics").text):
        assert time.monotonic() < deadline, "the request went on without its client"
        time.sleep(0.1)
    assert 'loraplex_leases{adapter="default/icd10-chapter"} 0.0' in text


def test_nothing_of_vllms_own_routes_is_reachable(server: RunningServer) -> None:
    paths = server.admin("GET", "/openapi.json").json()["paths"]
    assert set(paths) == {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/tokenize",
        "/detokenize",
        "/version",
        "/health",
        "/startupz",
        "/admin/garbage",
        "/v1/models",
        "/v1/models/{model}",
        "/admin/adapters",
        "/admin/adapters/{tenant}/{name}",
        "/admin/adapters/{tenant}/{name}/versions/{number}",
        "/admin/adapters/{tenant}/{name}/aliases/{alias}",
        "/admin/adapters/{tenant}/{name}/rollback",
        "/admin/adapters/{tenant}/{name}/versions/{number}/pin",
        "/admin/adapters/{tenant}/{name}/versions/{number}/prefetch",
        "/admin/adapters/{tenant}/{name}/sharing",
        "/admin/adapters/{tenant}/{name}/compose",
        "/admin/adapters/{tenant}/{name}/canary",
        "/admin/adapters/{tenant}/{name}/suspension",
        "/admin/adapters/{tenant}/{name}/recheck",
        "/admin/requests",
        "/admin/requests/{request_id}",
        "/admin/residency",
        "/admin/tenants",
        "/admin/tenants/{tenant}",
        "/admin/tenants/{tenant}/quota",
        "/admin/tenants/{tenant}/suspension",
        "/admin/tenants/{tenant}/policy",
        "/admin/keys",
        "/admin/keys/{key_id}",
        "/admin/keys/{key_id}/rotate",
        "/admin/usage",
        "/admin/audit",
        "/admin/whoami",
        "/livez",
        "/readyz",
        "/metrics",
    }
    for path in (
        "/invocations",
        "/tokenizer_info",
        "/scale_elastic_ep",
        "/v1/chat/completions/batch",
        "/ping",
    ):
        assert server.admin("POST", path, json={}).status_code == 404


ASKED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "messages": say("hi"),
        "max_completion_tokens": 4,
        "logprobs": True,
        "top_logprobs": 2,
    },
    "/v1/completions": {"prompt": "Once upon", "max_tokens": 4, "logprobs": 2, "n": 2},
    "/v1/responses": {"input": "hi", "max_output_tokens": 4},
    "/v1/messages": {"messages": say("hi"), "max_tokens": 4},
    "/v1/messages/count_tokens": {"messages": say("hi")},
    "/tokenize": {"prompt": "Once upon"},
    "/detokenize": {"tokens": [1, 2]},
}


@pytest.mark.parametrize("path", ASKED)
def test_an_answer_is_as_the_openapi_document_says(server: RunningServer, path: str) -> None:
    document = server.admin("GET", "/openapi.json").json()
    described = document["paths"][path]["post"]["responses"]
    for model, status in (("smart-home", "200"), ("nobody", "4XX")):
        answer = server.admin("POST", path, json={"model": model, **ASKED[path]})
        assert answer.status_code == (200 if status == "200" else 404), answer.text
        schema = described[status]["content"]["application/json"]["schema"]
        jsonschema.validate(answer.json(), {**schema, "components": document["components"]})


def test_the_engine_computes_on_the_processors_chosen_for_it(server: RunningServer) -> None:
    """Seen in its sibling, multiprocessing's tracker: vLLM writes its title over its own.

    What the operator has set stays: `make test` sets one thread.
    """
    chosen = {
        name: os.environ.get(name, value)
        for name, value in openmp_variables(read_machine()).items()
    }
    children = psutil.Process(server.process.pid).children(recursive=True)
    found = [{name: child.environ().get(name) for name in chosen} for child in children]
    assert chosen in found


def test_metrics_hold_vllms_and_ours(server: RunningServer) -> None:
    text = server.admin("GET", "/metrics").text
    assert "vllm:num_requests_running" in text
    assert "loraplex_requests_total" in text
    assert 'loraplex_adapter_load_seconds_count{from_tier="disk",outcome="ok"}' in text


def test_an_unstreamed_answer_has_a_time_to_its_first_token(server: RunningServer) -> None:
    def seconds(name: str) -> float:
        text = server.admin("GET", "/metrics").text
        # Of all adapters: behind many others, one counts as `other`.
        start = f"loraplex_{name}_seconds_sum{{"
        return sum(float(x.split()[-1]) for x in text.splitlines() if x.startswith(start))

    names = ("time_to_first_token", "inter_token", "request")
    before = {name: seconds(name) for name in names}
    ask(server, "smart-home", LIGHTS)
    time.sleep(MAX_AGE_SECONDS)  # so old may the page be that is read
    first_token, inter_token, request = (seconds(name) - before[name] for name in names)
    assert 0 < first_token < request - inter_token
    assert inter_token > 0
