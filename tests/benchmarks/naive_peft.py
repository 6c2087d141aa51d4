"""The naive way to serve adapters: transformers and PEFT, one request at a time.

    python -m tests.benchmarks.naive_peft ADAPTERS_DIR [--port 8197]

`ADAPTERS_DIR` holds one directory for each adapter (`loadtest run --weights-dir` makes such). Each
request sets its adapter and generates token by token, greedily, while all others wait.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import AsyncIterator, Generator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from peft import PeftModel
from transformers import AutoModelForCausalLM

from server.bundled_base import ensure_bundled_base

BASE = "base"


class OneAtATime:
    """The base and its adapters in one PEFT model."""

    def __init__(self, directory: Path) -> None:
        path = ensure_bundled_base()
        model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
        # The tester makes them as NAME-VERSION, versions from 0.
        found = {d.name.removesuffix("-0"): d for d in sorted(directory.iterdir()) if d.is_dir()}
        for index, (name, place) in enumerate(found.items()):
            if index == 0:
                model = PeftModel.from_pretrained(model, str(place), adapter_name=name)
            else:
                model.load_adapter(str(place), adapter_name=name)
        self.names, self.model = list(found), model.eval()

    @torch.inference_mode()
    def generate(self, name: str, prompt: list[int], max_tokens: int) -> Generator[int]:
        without = self.model.disable_adapter() if name == BASE and self.names else nullcontext()
        with without:
            if name != BASE:
                self.model.set_adapter(name)
            tokens, cache = torch.tensor([prompt]), None
            for _ in range(max_tokens):
                out = self.model(input_ids=tokens, past_key_values=cache, use_cache=True)
                cache, tokens = out.past_key_values, out.logits[:, -1:].argmax(-1)
                yield int(tokens)


def build_app(model: OneAtATime) -> FastAPI:
    app, turn = FastAPI(), asyncio.Lock()

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        listed = [{"id": BASE, "parent": None}]
        return {"data": listed + [{"id": name, "parent": BASE} for name in model.names]}

    @app.post("/v1/completions")
    async def complete(body: dict[str, Any]) -> StreamingResponse:
        return StreamingResponse(events(body), media_type="text/event-stream")

    async def events(body: dict[str, Any]) -> AsyncIterator[str]:
        number = body["max_tokens"]
        async with turn:
            tokens = model.generate(body["model"], body["prompt"], number)
            for index in range(number):
                token = await asyncio.to_thread(next, tokens)
                ended = "length" if index + 1 == number else None
                choice = {"index": 0, "text": f" {token}", "finish_reason": ended}
                yield f"data: {json.dumps({'model': body['model'], 'choices': [choice]})}\n\n"
            tokens.close()
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": number}
        yield f"data: {json.dumps({'model': body['model'], 'choices': [], 'usage': usage})}\n\n"
        yield "data: [DONE]\n\n"

    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("adapters", type=Path)
    parser.add_argument("--port", type=int, default=8197)
    arguments = parser.parse_args()
    app = build_app(OneAtATime(arguments.adapters))
    uvicorn.run(app, host="127.0.0.1", port=arguments.port, log_level="warning")
