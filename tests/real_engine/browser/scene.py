"""A server that has been used for a while, so that its pages have something to show."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai

from tests.real_engine.browser.people import make_key, upload
from tests.real_engine.questions import BRONCHITIS, LIGHTS, ask
from tests.real_engine.running_server import RunningServer

TENANT, ADAPTER = "acme", "acme/support"
PICTURE_SECONDS = 120
"""How long requests go on where the pages are to be pictured: their charts are of ten minutes."""
QUESTIONS = {
    "smart-home": LIGHTS,
    "icd10-chapter": BRONCHITIS,
    ADAPTER: "My parcel has not arrived. What can I do?",
    "base": "What is the capital of France?",
}


def evaluation(**scores: float) -> dict[str, Any]:
    return {
        "evaluation": {"dataset": "support-held-out", "examples": 400, **scores},
        "learning_rate": 0.003,
    }


def set_up(server: RunningServer, make_files: Callable[..., list[Path]]) -> None:
    """Make a tenant with keys, a quota and two adapters; one has four versions and a canary."""
    make_key(server, TENANT, "inference", label="shop's backend")
    make_key(server, TENANT, "adapters", "inference", label="training pipeline")
    quota = {"tokens_per_minute": 200_000, "concurrent_requests": 40, "adapters": 20, "weight": 2}
    server.admin("PUT", f"/admin/tenants/{TENANT}/quota", json=quota)
    upload(server, ADAPTER, make_files(61), evaluation(exact_match=0.71, rouge_l=0.92))
    upload(server, ADAPTER, make_files(62), evaluation(exact_match=0.86, rouge_l=0.95))
    upload(server, ADAPTER, make_files(63, config={"r": 3}))
    upload(server, ADAPTER, make_files(64), evaluation(exact_match=0.9, rouge_l=0.97))
    upload(server, "acme/summaries", make_files(65))
    point(server, "live", {2: 100})
    point(server, "live", {2: 90, 4: 10})
    point(server, "stable", {1: 100})
    keep_report(server)
    send_requests(server, PICTURE_SECONDS if os.environ.get("SCREENSHOTS") else 0)


def point(server: RunningServer, alias: str, shares: dict[int, int]) -> None:
    targets = [{"version": version, "weight": share} for version, share in shares.items()]
    answer = server.admin(
        "PUT", f"/admin/adapters/{ADAPTER}/aliases/{alias}", json={"targets": targets}
    )
    assert answer.is_success, answer.text


def keep_report(server: RunningServer) -> None:
    """Keep a report where `loraplex loadtest run --out` would have written it."""
    folder = server.data_dir / "loadtests" / "sixteen-adapters"
    folder.mkdir(parents=True, exist_ok=True)
    question = "How many tokens a second do sixteen adapters get?"
    (folder / "summary.json").write_text(json.dumps({"question": question}))
    (folder / "report.html").write_text("<h1>Sixteen adapters</h1>")


def send_requests(server: RunningServer, seconds: float) -> None:
    """Ask each model at least once; for longer, with more and fewer requests at a time."""
    end, stop = time.monotonic() + seconds, threading.Event()

    def go_on(number: int) -> None:
        models = list(QUESTIONS)
        for turn in range(10_000):
            model = models[(number + turn) % len(models)]
            try:
                ask(server, model, QUESTIONS[model], max_tokens=24, seed=turn)
            except openai.APIError:
                stop.set()
                raise
            if stop.is_set() or time.monotonic() > end:
                return
            time.sleep(0.3 * number)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(go_on, range(4)))
