"""What a request costs: the engine's seam counts its tokens, the data plane settles them."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass
class Meter:
    """The tokens of one HTTP request, of all its prompts and choices together."""

    input_tokens: int = 0
    output_tokens: int = 0

    @property
    def tokens(self) -> int:
        """In and out."""
        return self.input_tokens + self.output_tokens


METER: ContextVar[Meter | None] = ContextVar("meter", default=None)
"""The running request's; None for the server's own probes."""
