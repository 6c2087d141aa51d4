"""A server that has been used for a while, so that its pages have something to show."""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
from safetensors.torch import load_file, save_file

from adapters_registry.content.adapter_files import CONFIG_FILE, WEIGHTS_FILE
from server.process.demo import DEMO_DIR
from tests.real_engine.browser.people import make_key, upload
from tests.real_engine.questions import BRONCHITIS, FRANCE, LIGHTS, ask
from tests.real_engine.running_server import RunningServer

TENANT, ADAPTER = "acme", "acme/voice-control"
PICTURE_SECONDS = 300
"""How long requests go on where the pages are to be pictured: their charts are of ten minutes."""
NUM_CLIENTS, WAVE_SECONDS = 5, 100
"""How many ask at most at a time, and after how long as many ask again."""
COMMANDS = (
    LIGHTS,
    "Close the blinds in the bedroom",
    "Set the temperature to 21 degrees",
    "Is the front door locked?",
    "Add milk to my shopping list",
)
QUESTIONS = {
    ADAPTER: COMMANDS,
    "smart-home": COMMANDS,
    "icd10-chapter": (BRONCHITIS, "Diagnosis: Type 2 diabetes mellitus without complications"),
    "base": (FRANCE, "Name three colours of the rainbow."),
}


def edition(folder: Path, strength: float, **changes: Any) -> list[Path]:
    """Write the demo adapter with its B matrices times a factor, and with changed settings."""
    folder.mkdir(parents=True)
    demo = DEMO_DIR / "smart-home"
    config = json.loads((demo / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps({**config, **changes}))
    weights = load_file(demo / WEIGHTS_FILE)
    for name, values in weights.items():
        if "lora_B" in name:
            weights[name] = values * strength
    save_file(weights, folder / WEIGHTS_FILE)
    return sorted(folder.iterdir())


def evaluation(**scores: float) -> dict[str, Any]:
    return {
        "evaluation": {"dataset": "voice-held-out", "examples": 400, **scores},
        "learning_rate": 0.003,
    }


def set_up(server: RunningServer, make_files: Callable[..., list[Path]]) -> None:
    """Make a tenant with keys, a quota and two adapters; one has four versions and a canary.

    Its versions are those of a demo adapter, a little weaker or stronger. Their scores are made up.
    """
    make_key(server, TENANT, "inference", label="shop's backend")
    make_key(server, TENANT, "adapters", "inference", label="training pipeline")
    quota = {"tokens_per_minute": 200_000, "concurrent_requests": 40, "adapters": 20, "weight": 2}
    server.admin("PUT", f"/admin/tenants/{TENANT}/quota", json=quota)
    folder = server.data_dir.parent / "editions"
    scores: list[tuple[float, dict[str, Any]]] = [
        (0.9, evaluation(exact_match=0.71, rouge_l=0.92)),
        (1.0, evaluation(exact_match=0.86, rouge_l=0.95)),
        (1.0, {}),
        (1.05, evaluation(exact_match=0.9, rouge_l=0.97)),
    ]
    for number, (strength, metadata) in enumerate(scores, start=1):
        changes = {"r": 3} if number == 3 else {}
        upload(server, ADAPTER, edition(folder / str(number), strength, **changes), metadata)
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
    began, stop = time.monotonic(), threading.Event()

    def is_busy(number: int) -> bool:
        """Whether this client asks now: the first one always, the last one at the top of a wave."""
        wave = 0.5 - 0.5 * math.cos(2 * math.pi * (time.monotonic() - began) / WAVE_SECONDS)
        return number <= wave * NUM_CLIENTS

    def go_on(number: int) -> None:
        models = list(QUESTIONS)
        for turn in range(10_000):
            model = models[(number + turn) % len(models)]
            questions = QUESTIONS[model]
            try:
                ask(server, model, questions[turn % len(questions)], max_tokens=24, seed=turn)
            except openai.APIError:
                stop.set()
                raise
            while not is_busy(number) and not stop.is_set() and time.monotonic() < began + seconds:
                time.sleep(0.5)
            if stop.is_set() or time.monotonic() > began + seconds:
                return

    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        list(pool.map(go_on, range(NUM_CLIENTS)))
