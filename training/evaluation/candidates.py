"""Candidates for evaluation: a base, with or without an adapter, or a model on a server."""

from __future__ import annotations

from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import httpx
import torch
from torch.nn import functional

from adapters_registry.check.weights import trained_quantization
from adapters_registry.content.adapter_files import CONFIG_FILE, WEIGHTS_FILE
from training.data.batches import Collator
from training.data.conversations import Message, Tool
from training.data.tokenization import IGNORED_LABEL, Sample
from training.errors import TrainingError
from training.models.base_model import NF4, load_model, load_tokenizer, own_chat_template
from training.run.trainer import answer_logits

BATCH_SIZE = 16
MAX_REQUESTS = 16
TIMEOUT_SECONDS = 600


@dataclass(frozen=True)
class Prompt:
    """A prompt, as messages and tools, and as the token ids that the template makes of them."""

    messages: list[Message]
    tools: list[Tool]
    input_ids: list[int]

    @property
    def has_tools(self) -> bool:
        """Return whether the prompt offers tools, or has an answer of a tool."""
        return bool(self.tools) or any(m["role"] == "tool" for m in self.messages)


class Candidate(ABC):
    """A model that can answer prompts and give the likelihood of an answer."""

    chat_template = ""
    """The text of its own chat template. Empty means the base's."""

    @abstractmethod
    def answers(self, prompts: list[Prompt], max_new_tokens: int) -> list[str]:
        """Return greedy answers, one for each prompt."""

    @abstractmethod
    def logprobs(self, samples: list[Sample]) -> list[list[float]]:
        """Return the log-probability of each token of each sample's answer, in nats."""

    def losses(self, samples: list[Sample]) -> list[float]:
        """Return each sample's mean negative log-likelihood of its answer's tokens, in nats."""
        return [-fmean(of_sample) for of_sample in self.logprobs(samples)]


class LocalModel(Candidate):
    """A base in this process, on the chosen device, with or without an adapter."""

    def __init__(
        self,
        base: Path,
        adapter: Path | None = None,
        *,
        nf4: bool | None = None,
        chat_template: str = "",
    ) -> None:
        """Load base and adapter. If `nf4` is None, NF4 is used if the adapter was trained over it.

        If no `chat_template` is given, the one beside the adapter is used, if there is one.

        Raises:
            TrainingError: base or adapter can't be loaded.
        """
        if nf4 is None:
            nf4 = adapter is not None and is_trained_on_nf4(adapter)
        if adapter is not None:
            chat_template = chat_template or own_chat_template(adapter)
        self.chat_template = chat_template
        self._tokenizer = load_tokenizer(base, chat_template, padding_side="left")
        self._model = load_model(base, nf4=nf4)
        if adapter is not None:
            self._model = load_adapter(self._model, adapter)
        self._model.eval()

    def answers(self, prompts: list[Prompt], max_new_tokens: int) -> list[str]:
        """Return greedy answers. Prompts of similar length are answered together."""
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].input_ids))
        found: dict[int, str] = {}
        for start in range(0, len(order), BATCH_SIZE):
            rows = order[start : start + BATCH_SIZE]
            found |= dict(
                zip(rows, self._batch([prompts[i] for i in rows], max_new_tokens), strict=True)
            )
        return [found[index] for index in range(len(prompts))]

    def _batch(self, prompts: list[Prompt], max_new_tokens: int) -> list[str]:
        rows = {"input_ids": [prompt.input_ids for prompt in prompts]}
        batch = self._tokenizer.pad(rows, return_tensors="pt")
        with torch.inference_mode():
            output = self._model.generate(
                **batch.to(self._model.device), max_new_tokens=max_new_tokens, do_sample=False
            )
        new_tokens = output[:, batch["input_ids"].shape[1] :]
        texts = self._tokenizer.batch_decode(new_tokens, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def logprobs(self, samples: list[Sample]) -> list[list[float]]:
        """Return the log-probabilities, computed a sample at a time, so there is no padding."""
        collate = Collator(self._tokenizer.pad_token_id)
        found = []
        for sample in samples:
            batch = {k: v.to(self._model.device) for k, v in collate([sample]).items()}
            with torch.inference_mode():
                logits, tokens = answer_logits(self._model, batch)
                losses = functional.cross_entropy(logits, tokens, reduction="none")
            found.append((-losses).tolist())
        return found


class ServedModel(Candidate):
    """A model on a server with OpenAI's API, as its clients see it."""

    def __init__(self, url: str, api_key: str | None, model: str) -> None:
        """Prepare a client. Sends no request yet."""
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = httpx.Client(
            base_url=url.rstrip("/"), headers=headers, timeout=TIMEOUT_SECONDS
        )
        self._model = model

    def answers(self, prompts: list[Prompt], max_new_tokens: int) -> list[str]:
        """Return greedy answers of the chat API.

        A prompt with tools goes to the completions API as tokens, because the chat API would remove
        tool calls from the text, and the text is what is compared.
        """

        def one(prompt: Prompt) -> str:
            limits = {"temperature": 0, "max_tokens": max_new_tokens}
            if prompt.has_tools:
                reply = self._post("/v1/completions", prompt=prompt.input_ids, **limits)
                return str(reply["choices"][0]["text"]).strip()
            messages = [{"role": m["role"], "content": m["content"]} for m in prompt.messages]
            reply = self._post("/v1/chat/completions", messages=messages, **limits)
            return str(reply["choices"][0]["message"]["content"] or "").strip()

        with ThreadPoolExecutor(MAX_REQUESTS) as pool:
            return list(pool.map(one, prompts))

    def logprobs(self, samples: list[Sample]) -> list[list[float]]:
        """Return what vLLM says of a prompt's tokens."""

        def one(sample: Sample) -> list[float]:
            reply = self._post(
                "/v1/completions", prompt=sample.input_ids, max_tokens=1, prompt_logprobs=0
            )
            logprobs = reply["choices"][0]["prompt_logprobs"]
            answer = [i for i, label in enumerate(sample.labels) if label != IGNORED_LABEL]
            return [float(logprobs[i][str(sample.input_ids[i])]["logprob"]) for i in answer]

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
    """Return whether a directory holds an adapter in PEFT's format."""
    return (directory / CONFIG_FILE).is_file()


def is_trained_on_nf4(adapter: Path) -> bool:
    """Return whether the adapter's file says that it was trained over a base in NF4."""
    try:
        return trained_quantization(adapter / WEIGHTS_FILE) == NF4
    except (OSError, ValueError) as error:
        raise TrainingError(f"{adapter} isn't an adapter: {error}") from error


def load_adapter(model: Any, adapter: Path, name: str = "default") -> Any:
    """Return the model with an adapter added under this name.

    Raises:
        TrainingError: it isn't an adapter of this base.
    """
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, adapter, name)
    except (OSError, ValueError, RuntimeError) as error:
        raise TrainingError(f"can't load the adapter {adapter}: {error}") from error
