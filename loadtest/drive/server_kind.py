"""How a server is told which adapter a request wants."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from loadtest.plan.distributions import BASE


class Server(StrEnum):
    """The kinds of server that differ in this."""

    OPENAI = "openai"
    """`model` names it: ours, vLLM's, most others."""
    LLAMA_CPP = "llama-cpp"
    """llama.cpp's server: `lora` lists ids, in the order of its `--lora` arguments."""


def chosen_lora(adapter: int | None) -> list[dict[str, Any]]:
    """llama.cpp's `lora` for one of its adapters, or for none of them.

    Those not named are off, but an empty list means the server's default: all of them, at full
    scale, also with `--lora-init-without-apply`.
    """
    return [{"id": 0, "scale": 0.0}] if adapter is None else [{"id": adapter, "scale": 1.0}]


@dataclass(frozen=True)
class Dialect:
    """One server's way."""

    base: str
    """The name of the base."""
    server: Server = Server.OPENAI
    adapters: dict[str, int] = field(default_factory=dict)
    """llama.cpp's ids."""

    def name_of(self, model: str) -> str:
        """The model as a request names it."""
        return self.base if model == BASE else model

    def adapt(self, body: dict[str, Any]) -> dict[str, Any]:
        """The body that this server understands."""
        if self.server is Server.OPENAI:
            return body
        chosen = self.adapters.get(body["model"])
        return body | {"lora": chosen_lora(chosen), "cache_prompt": False}

    @property
    def names_versions(self) -> bool:
        """Whether responses say which adapter answered."""
        return self.server is Server.OPENAI
