"""What `register --fit-rank` says of a fit, against the served fit and the original in float32."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters_registry.content.adapter_files import WEIGHTS_FILE
from loadtest.drive.random_adapters import LlamaShape, make_adapter
from server.bundled_base import ensure_bundled_base
from tests.long_form import LONG
from tests.real_engine.reference import load
from tests.real_engine.running_server import RunningServer
from training.evaluation.probes import PROBES

RANK = 64
LIMIT = 16
"""The server's limit of ranks."""
SIZE = 0.045
"""So large that the original is far from the base, and within what the gate accepts."""
NOISE = 0.04
"""Bound on what BF16 changes of a mean difference, in nats."""
SAID = re.compile(
    r"log-probabilities of (\d+) tokens of probe texts: (\S+) from the original's on average, "
    r"(\S+) at most \(nats\)"
)


@dataclass(frozen=True)
class Said:
    """What the command has printed of a fit."""

    num_tokens: int
    mean: float
    largest: float


def make_original(directory: Path, rest: float) -> Path:
    """A random adapter. All but `LIMIT` of its ranks have this share of the others' size."""
    make_adapter(directory, LlamaShape(), rank=RANK, seed=0, size=SIZE)
    tensors = load_file(directory / WEIGHTS_FILE)
    for key, value in tensors.items():
        if "lora_A" in key:
            value[LIMIT:] *= rest
    save_file(tensors, directory / WEIGHTS_FILE)
    return directory


def register(server: RunningServer, name: str, original: Path) -> Said:
    command = [sys.executable, "-m", "server", "adapters", "register", name, str(original)]
    environment = {**os.environ, "LORAPLEX_URL": server.url, "LORAPLEX_API_KEY": server.key}
    done = subprocess.run([*command, "--fit-rank"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"default/{name}@2 is its best fit of rank {LIMIT}" in done.stdout
    said = SAID.search(done.stdout)
    assert said is not None, done.stdout
    return Said(int(said[1]), float(said[2]), float(said[3]))


def served(server: RunningServer, model: str) -> list[float]:
    """The log-probabilities of the probe texts' tokens, as any client of completions gets them."""
    body: dict[str, Any] = {"model": model, "max_tokens": 1, "echo": True, "logprobs": 0}
    found: list[float] = []
    for text in PROBES:
        answer = server.admin("POST", "/v1/completions", json={**body, "prompt": text}).json()
        found += answer["choices"][0]["logprobs"]["token_logprobs"][1:-1]
    return found


def in_float32(original: Path) -> list[float]:
    """The same of an adapter by PEFT and transformers, in float32."""
    from transformers import AutoTokenizer

    base = ensure_bundled_base()
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    model = load(base, original)

    def of_text(text: str) -> list[float]:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            logits = model(ids).logits[0, :-1]
        found: list[float] = logits.log_softmax(-1)[range(len(logits)), ids[0, 1:]].tolist()
        return found

    return list(chain.from_iterable(map(of_text, PROBES)))


def gaps(one: list[float], other: list[float]) -> list[float]:
    return [abs(a - b) for a, b in zip(one, other, strict=True)]


@pytest.mark.skipif(not LONG, reason="`make test-long` runs it")
@pytest.mark.parametrize(("name", "rest"), [("far-fit", 1.0), ("near-fit", 0.05)])
def test_the_said_difference_is_the_served_one(
    server: RunningServer, tmp_path: Path, name: str, rest: float
) -> None:
    original = make_original(tmp_path / name, rest)
    said = register(server, name, original)
    expected = in_float32(original)
    own = gaps(served(server, f"{name}@2"), expected)
    of_base = gaps(served(server, "base"), expected)
    print(
        f"\n{name}: said {said}; served {fmean(own):.3f}, at most {max(own):.2f}; "
        f"the base {fmean(of_base):.3f}, at most {max(of_base):.2f}"
    )
    assert said.num_tokens == len(own)
    assert abs(said.mean - fmean(own)) < NOISE
    assert abs(said.largest - max(own)) < 10 * NOISE
    assert fmean(of_base) - fmean(own) > 3 * NOISE, "the base in place of the fit is noticed"
    if rest == 1:
        assert said.mean > 10 * NOISE
    else:
        assert said.mean < 3 * NOISE
    server.admin("DELETE", f"/admin/adapters/default/{name}?force=true")
