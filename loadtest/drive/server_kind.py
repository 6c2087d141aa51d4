"""How a request tells a server which adapter it wants."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from loadtest.plan.distributions import BASE


class ServerKind(StrEnum):
    """Kinds of server that need to be told in different ways."""

    OPENAI = "openai"
    """`model` names the adapter: our server, vLLM's, most others."""
    LLAMA_CPP = "llama-cpp"
    """llama.cpp's server: `lora` lists ids, in the order of its `--lora` arguments."""


def chosen_lora(adapter: int | None) -> list[dict[str, Any]]:
    """Return llama.cpp's `lora` field for one of its adapters, or for the base (None).

    Adapters that aren't named are off. But an empty list means the server's default, which is all
    adapters at full scale, even with `--lora-init-without-apply`.
    """
    return [{"id": 0, "scale": 0.0}] if adapter is None else [{"id": adapter, "scale": 1.0}]


@dataclass(frozen=True)
class Dialect:
    """How one server wants requests to be written."""

    base: str
    """The name of the server's base."""
    server: ServerKind = ServerKind.OPENAI
    adapters: dict[str, int] = field(default_factory=dict)
    """llama.cpp's id of each adapter."""

    def name_of(self, model: str) -> str:
        """Return a model as a request names it."""
        return self.base if model == BASE else model

    def adapt(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return the body that this server understands."""
        if self.server is ServerKind.OPENAI:
            return body
        chosen = self.adapters.get(body["model"])
        return body | {"lora": chosen_lora(chosen), "cache_prompt": False}

    @property
    def names_versions(self) -> bool:
        """Return whether responses say which adapter answered."""
        return self.server is ServerKind.OPENAI
