"""What can be evaluated: a base, an adapter over its base, a merged model, a model on a server."""

from __future__ import annotations

from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import torch

from adapters_registry.check.weights import trained_over
from adapters_registry.content.adapter_files import CONFIG_FILE, WEIGHTS_FILE
from training.data.conversations import IGNORED_LABEL, Collator, Conversation, Sample
from training.errors import TrainingError
from training.models.base_model import NF4, load_model, load_tokenizer
from training.run.trainer import answer_loss

BATCH_SIZE = 16
MAX_REQUESTS = 16
TIMEOUT_SECONDS = 600


class Candidate(ABC):
    """Something that answers, and says how likely it finds an answer."""

    @abstractmethod
    def answers(self, prompts: list[Conversation], max_new_tokens: int) -> list[str]:
        """Greedy answers, one for each prompt."""

    @abstractmethod
    def losses(self, samples: list[Sample]) -> list[float]:
        """Each sample's mean negative log-likelihood of its answer's tokens, in nats."""


class LocalModel(Candidate):
    """A base in this process, with or without an adapter."""

    def __init__(self, base: Path, adapter: Path | None = None, *, nf4: bool | None = None) -> None:
        """Load it; `nf4` None means: over NF4 if the adapter was trained so.

        Raises:
            TrainingError: base or adapter can't be loaded.
        """
        if nf4 is None:
            nf4 = adapter is not None and is_trained_over_nf4(adapter)
        self._tokenizer = load_tokenizer(base, padding_side="left")
        self._model = load_model(base, nf4=nf4)
        if adapter is not None:
            self._model = load_adapter(self._model, adapter)
        self._model.eval()

    def answers(self, prompts: list[Conversation], max_new_tokens: int) -> list[str]:
        """Greedy answers, in batches of like length."""
        order = sorted(range(len(prompts)), key=lambda i: len(str(prompts[i])))
        found: dict[int, str] = {}
        for start in range(0, len(order), BATCH_SIZE):
            rows = order[start : start + BATCH_SIZE]
            found |= dict(
                zip(rows, self._batch([prompts[i] for i in rows], max_new_tokens), strict=True)
            )
        return [found[index] for index in range(len(prompts))]

    def _batch(self, prompts: list[Conversation], max_new_tokens: int) -> list[str]:
        batch = self._tokenizer.apply_chat_template(
            prompts, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            output = self._model.generate(
                **batch.to(self._model.device), max_new_tokens=max_new_tokens, do_sample=False
            )
        new_tokens = output[:, batch["input_ids"].shape[1] :]
        texts = self._tokenizer.batch_decode(new_tokens, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def losses(self, samples: list[Sample]) -> list[float]:
        """One sample at a time, without padding."""
        collate = Collator(self._tokenizer.pad_token_id)
        found = []
        for sample in samples:
            batch = {k: v.to(self._model.device) for k, v in collate([sample]).items()}
            with torch.inference_mode():
                total, count = answer_loss(self._model, batch)
            found.append(float(total) / count)
        return found


class ServedModel(Candidate):
    """A model on a server with OpenAI's API, as its clients see it."""

    def __init__(self, url: str, api_key: str | None, model: str) -> None:
        """Name a model; nothing is asked yet."""
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = httpx.Client(
            base_url=url.rstrip("/"), headers=headers, timeout=TIMEOUT_SECONDS
        )
        self._model = model

    def answers(self, prompts: list[Conversation], max_new_tokens: int) -> list[str]:
        """Greedy answers of the chat API."""

        def one(prompt: Conversation) -> str:
            reply = self._post(
                "/v1/chat/completions", messages=prompt, temperature=0, max_tokens=max_new_tokens
            )
            return str(reply["choices"][0]["message"]["content"] or "").strip()

        with ThreadPoolExecutor(MAX_REQUESTS) as pool:
            return list(pool.map(one, prompts))

    def losses(self, samples: list[Sample]) -> list[float]:
        """From the log-probabilities that vLLM gives of a prompt's own tokens."""

        def one(sample: Sample) -> float:
            reply = self._post(
                "/v1/completions", prompt=sample.input_ids, max_tokens=1, prompt_logprobs=0
            )
            logprobs = reply["choices"][0]["prompt_logprobs"]
            answer = [i for i, label in enumerate(sample.labels) if label != IGNORED_LABEL]
            total = sum(logprobs[i][str(sample.input_ids[i])]["logprob"] for i in answer)
            return float(-total / len(answer))

        with ThreadPoolExecutor(MAX_REQUESTS) as pool:
            return list(pool.map(one, samples))

    def _post(self, path: str, **body: Any) -> Any:
        try:
            response = self._client.post(path, json={"model": self._model, **body})
            reply = response.json()
        except (httpx.HTTPError, ValueError) as error:
            raise TrainingError(f"no answer from {self._client.base_url}: {error}") from error
        if response.is_error:
            raise TrainingError(f"{self._model}: {reply['error']['message']}")
        return reply


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds an adapter in PEFT's format."""
    return (directory / CONFIG_FILE).is_file()


def is_trained_over_nf4(adapter: Path) -> bool:
    """Whether the adapter says that it was trained over a base in NF4."""
    try:
        return trained_over(adapter / WEIGHTS_FILE) == NF4
    except (OSError, ValueError) as error:
        raise TrainingError(f"{adapter} is no adapter: {error}") from error


def load_adapter(model: Any, adapter: Path, name: str = "default") -> Any:
    """The model with an adapter on top, under a name.

    Raises:
        TrainingError: it is no adapter of this base.
    """
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, adapter, name)
    except (OSError, ValueError, RuntimeError) as error:
        raise TrainingError(f"can't load the adapter {adapter}: {error}") from error
