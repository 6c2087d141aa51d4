"""The comparison of two servers: what is asked, what is counted, and when it refuses."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from training.errors import TrainingError
from training.export.served_parity import ModelAt, compare_served

TEXTS = [[1, 2, 3], [4, 5]]


class Answering(ThreadingHTTPServer):
    """A server that gives each token but the first its number, and `shift` more."""

    daemon_threads = True

    def __init__(self, shift: float, status: int = 200) -> None:
        self.asked: list[dict[str, Any]] = []
        asked = self.asked

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                asked.append(body)
                tokens = body["prompt"]
                entries = [None, *({str(t): {"logprob": -t + shift}} for t in tokens[1:])]
                content = json.dumps({"choices": [{"prompt_logprobs": entries}]}).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def served(self) -> ModelAt:
        return ModelAt(f"http://127.0.0.1:{self.server_port}", "key", "a/b@1")


@pytest.fixture
def exact() -> Iterator[Answering]:
    server = Answering(0.0)
    yield server
    server.shutdown()
    server.server_close()


def test_rounding_passes_and_is_reported(exact: Answering) -> None:
    other = Answering(0.01)
    parity = compare_served(exact.served, other.served, TEXTS)
    assert parity.num_tokens == 3, "all but the first of each text"
    assert parity.mean_difference == pytest.approx(0.01)
    assert parity.max_difference == pytest.approx(0.01)
    assert [body["model"] for body in other.asked] == ["a/b@1"] * 2
    other.shutdown()
    other.server_close()


@pytest.mark.parametrize("shift", [0.5, float("nan")])
def test_other_answers_are_refused(exact: Answering, shift: float) -> None:
    other = Answering(shift)
    with pytest.raises(TrainingError, match="answers otherwise"):
        compare_served(exact.served, other.served, TEXTS)
    other.shutdown()
    other.server_close()


def test_a_refusal_and_silence_say_which_server(exact: Answering) -> None:
    other = Answering(0.0, status=404)
    with pytest.raises(TrainingError, match="refuses a/b@1"):
        compare_served(exact.served, other.served, TEXTS)
    other.shutdown()
    other.server_close()
    with pytest.raises(TrainingError, match="doesn't answer"):
        compare_served(exact.served, other.served, TEXTS)
