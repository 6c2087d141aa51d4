"""What an adapter is worth: greedy answers on held-out conversations, against the base's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from training.data import Conversation

BATCH_SIZE = 16


def exact_match(
    base: Path,
    conversations: list[Conversation],
    adapter: Path | None = None,
    max_new_tokens: int = 96,
) -> float:
    """Share of conversations whose last turn the model gives word for word, greedily, in [0, 1]."""
    prompts = [conversation[:-1] for conversation in conversations]
    answers = generate(base, prompts, adapter, max_new_tokens)
    expected = [c[-1]["content"] for c in conversations]
    return sum(a == e for a, e in zip(answers, expected, strict=True)) / len(expected)


def generate(
    base: Path,
    prompts: list[Conversation],
    adapter: Path | None = None,
    max_new_tokens: int = 96,
) -> list[str]:
    """Greedy answers of the base, or of the base with the adapter, one for each prompt."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter)
    model.eval()
    answers: list[str] = []
    for start in range(0, len(prompts), BATCH_SIZE):
        batch = tokenizer.apply_chat_template(
            prompts[start : start + BATCH_SIZE],
            add_generation_prompt=True,
            padding=True,
            return_tensors="pt",
            return_dict=True,
        )
        with torch.inference_mode():
            output = model.generate(**batch, max_new_tokens=max_new_tokens, do_sample=False)
        new_tokens = output[:, batch["input_ids"].shape[1] :]
        answers += [a.strip() for a in tokenizer.batch_decode(new_tokens, skip_special_tokens=True)]
    return answers
