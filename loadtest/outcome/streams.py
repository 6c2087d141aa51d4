"""Reads a streamed answer: server-sent events, and OpenAI-shaped chunks in them. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import from_json

DONE = b"[DONE]"


class StreamBroken(Exception):
    """An answer is not a whole, well-formed stream. `status` is the kind of error."""

    def __init__(self, status: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status


@dataclass(slots=True)
class Token:
    """A token with its log-probability and those of the likeliest tokens."""

    text: str
    logprob: float
    likeliest: dict[str, float]


class Events:
    """Splits a stream of bytes, however it is cut, into the data of server-sent events."""

    def __init__(self) -> None:
        self._rest, self._return = b"", b""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the data of each event that is complete now. Comments are left out."""
        if self._return or b"\r" in data:  # the two bytes of a line's end may come apart
            data = self._return + data
            self._return = b"\r" if data.endswith(b"\r") else b""
            data = data.removesuffix(b"\r").replace(b"\r\n", b"\n")
        *events, self._rest = (self._rest + data).split(b"\n\n")
        found = []
        for event in events:
            if event.startswith(b"data: ") and b"\n" not in event:
                found.append(event[6:])
            else:
                found += self._slowly(event)
        return found

    @property
    def rest(self) -> bytes:
        """Return what has come of the next event."""
        return self._rest + self._return

    @staticmethod
    def _slowly(event: bytes) -> list[bytes]:
        """Read an event that has several lines, comments or other fields."""
        lines = [line for line in event.split(b"\n") if line.startswith(b"data:")]
        if lines:
            return [b"\n".join(line[5:].removeprefix(b" ") for line in lines)]
        known = (b":", b"event:", b"id:", b"retry:")
        if all(not line or line.startswith(known) for line in event.split(b"\n")):
            return []
        raise StreamBroken("garbage", f"not a server-sent event: {event[:80]!r}")


@dataclass(slots=True)
class Reading:
    """What a stream has said so far."""

    model: str | None = None
    text: list[str] = field(default_factory=list)
    finished: bool = False
    done: bool = False
    tokens_in: int | None = None
    tokens_out: int | None = None
    tokens: list[Token] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    is_mixed: bool = False

    def take(self, data: bytes) -> bool:
        """Read one event. Returns whether it brings tokens.

        Raises:
            StreamBroken: the event isn't JSON, has no known shape, or is an error.
        """
        if data == DONE:
            self.done = True
            return False
        try:
            chunk = from_json(data)
            if "error" in chunk:
                raise StreamBroken("stream_error", json.dumps(chunk["error"])[:300])
            self._note_model(chunk.get("model"))
            usage = chunk.get("usage")
            if usage:
                self.tokens_in = _of_type(int | None, usage.get("prompt_tokens"))
                self.tokens_out = _of_type(int | None, usage.get("completion_tokens"))
            choices = chunk.get("choices")
            return self._take_choice(choices[0]) if choices else False
        except (ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
            raise StreamBroken("garbage", f"{data[:80]!r}: {error}") from error

    def _note_model(self, model: str | None) -> None:
        if _of_type(str | None, model) is None or model == self.model:
            return
        self.is_mixed |= self.model is not None
        self.model = model

    def _take_choice(self, choice: dict[str, Any]) -> bool:
        ended = choice.get("finish_reason") is not None
        self.finished |= ended
        if logprobs := choice.get("logprobs"):
            self._take_logprobs(logprobs)
        ids = [_of_type(int, each) for each in choice.get("token_ids") or []]
        self.token_ids += ids
        if "text" in choice:
            self.text.append(_of_type(str, choice["text"]))
            return bool(choice["text"] or ids) or not ended
        delta = choice["delta"]
        text = delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning")
        if text:
            self.text.append(_of_type(str, text))
        return bool(text or ids or delta.get("tool_calls"))

    def _take_logprobs(self, logprobs: dict[str, Any]) -> None:
        """Read the shape of the completions API. Some servers send the chat API's shape there."""
        if "content" in logprobs:
            for entry in logprobs["content"]:
                likeliest = {top["token"]: top["logprob"] for top in entry["top_logprobs"]}
                self._add_token(entry["token"], entry["logprob"], likeliest)
            return
        tops = logprobs.get("top_logprobs") or [{}] * len(logprobs["tokens"])
        for text, logprob, likeliest in zip(
            logprobs["tokens"], logprobs["token_logprobs"], tops, strict=True
        ):
            self._add_token(text, logprob, likeliest or {})

    def _add_token(self, text: Any, logprob: Any, likeliest: dict[Any, Any]) -> None:
        numbers = {_of_type(str, each): float(value) for each, value in likeliest.items()}
        self.tokens.append(Token(_of_type(str, text), float(logprob), numbers))


def _of_type(kind: Any, value: Any) -> Any:
    """Return the value. Raises `TypeError` if it isn't of this type."""
    if not isinstance(value, kind):
        raise TypeError(f"{value!r} is no {kind}")
    return value
