"""The limits of rank that the engine can be set to."""

from __future__ import annotations

RANK_LIMITS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Largest ranks of an adapter, as vLLM takes them."""


def limit_for(rank: int) -> int | None:
    """Return the smallest limit that lets this rank pass, or None if none does."""
    return next((limit for limit in RANK_LIMITS if limit >= rank), None)
