"""Compiles and calls `decoder.c`."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from server.engine.worker.compiled import compile_library
from server.engine.worker.linear_cpu.kernel import LinearStruct
from server.engine.worker.lora_cpu.steps import BLOCK_ROWS, Block

MOST_PROMPT_ROWS, MOST_PROMPT_TOKENS = 128, 512
"""Steps with prompts take the compiled decoder up to so many new tokens, of requests with so many
tokens. Each row attends alone, so vLLM's attention is faster for long prompts."""

FEW_ROWS_OF_REQUEST = 16
"""So many new tokens of each request take the compiled decoder behind any number of others: guesses
of an answer's next tokens, for instance."""

_SOURCE = Path(__file__).with_name("decoder.c")


class ProjectionStruct(ctypes.Structure):
    """`projection_t` of `decoder.c`."""

    _fields_ = (("product", LinearStruct), ("adapters", ctypes.c_void_p))


class LayerStruct(ctypes.Structure):
    """`decoder_layer_t`."""

    _fields_ = (
        ("qkv", ProjectionStruct),
        ("attended", ProjectionStruct),
        ("gate_up", ProjectionStruct),
        ("down", ProjectionStruct),
        ("norm", ctypes.c_void_p),
        ("mlp_norm", ctypes.c_void_p),
        ("cache", ctypes.c_void_p),
    )


class DecoderStruct(ctypes.Structure):
    """`decoder_t`."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("num_layers", "hidden", "heads", "kv_heads")),
        *((name, ctypes.c_int64) for name in ("head_features", "inner")),
        *((name, ctypes.c_int64) for name in ("block_tokens", "block_stride")),
        *((name, ctypes.c_int64) for name in ("has_pairs", "rotary")),
        ("epsilon", ctypes.c_float),
        ("scale", ctypes.c_float),
        ("cos_sin", ctypes.c_void_p),
        ("norm", ctypes.c_void_p),
        ("layers", ctypes.POINTER(LayerStruct)),
    )


class BatchStruct(ctypes.Structure):
    """`batch_t`."""

    _fields_ = (
        ("rows", ctypes.c_int64),
        ("position", ctypes.c_void_p),
        ("slot", ctypes.c_void_p),
        ("length", ctypes.c_void_p),
        ("table", ctypes.c_void_p),
        ("table_stride", ctypes.c_int64),
        ("blocks", ctypes.c_void_p),
        ("num_blocks", ctypes.c_int64),
    )


class WorkStruct(ctypes.Structure):
    """`work_t`."""

    _fields_ = tuple(
        (name, ctypes.c_void_p) for name in ("x", "halves", "qkv", "wide", "u", "factors")
    )


@dataclass(frozen=True)
class Batch:
    """A step: a row for each new token. Those of a request follow each other."""

    positions: torch.Tensor
    """int64."""
    slots: torch.Tensor
    """int64: where in the cache each row's key and value go."""
    lengths: torch.Tensor
    """int32: how many tokens of its request each row attends to, itself included."""
    tables: torch.Tensor
    """int32, (rows, blocks): the blocks of the cache of each row's request."""
    blocks: ctypes.Array[Block]
    """The rows with an adapter."""


class Decoder:
    """One model's layers. One thread may use it at a time."""

    def __init__(self, struct: DecoderStruct, max_ranks: int, keep_alive: Sequence[object]) -> None:
        """`keep_alive`: what owns the memory whose addresses are in `struct`.

        Raises:
            KernelUnavailable: there is no compiler, or compiling or loading fails.
        """
        library, _ = compile_library(_SOURCE)
        self._call = library.decode
        self._call.restype = ctypes.c_int64
        self._call.argtypes = (ctypes.c_void_p,) * 3
        self._struct, self._max_ranks, self._keep_alive = struct, max_ranks, keep_alive
        self._rows = 0

    def decode(self, embeddings: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the normalized output of the last layer for embeddings (rows, hidden).

        Raises:
            ValueError: a block's slot is empty.
        """
        rows, hidden = embeddings.shape
        if rows > self._rows:
            self._make_room(rows)
        self._x[: rows * hidden].view(rows, hidden).copy_(embeddings)
        given = BatchStruct(
            rows,
            batch.positions.data_ptr(),
            batch.slots.data_ptr(),
            batch.lengths.data_ptr(),
            batch.tables.data_ptr(),
            batch.tables.stride(0),
            ctypes.addressof(batch.blocks),
            len(batch.blocks),
        )
        pointers = (self._struct, given, self._work)
        if empty := self._call(*(ctypes.addressof(each) for each in pointers)):
            raise ValueError(f"LoRA slot {empty - 1} is empty")
        return self._halves[: rows * hidden].view(rows, hidden).clone()

    def _make_room(self, rows: int) -> None:
        it = self._struct
        attended = it.heads * it.head_features
        widest_in = max(it.hidden, attended, it.inner)
        half = torch.bfloat16
        self._x = torch.empty(rows * it.hidden, dtype=half)
        self._halves = torch.empty(rows * widest_in, dtype=half)
        qkv = (it.heads + 2 * it.kv_heads) * it.head_features
        self._qkv = torch.empty(rows * qkv, dtype=half)
        self._wide = torch.empty(rows * max(2 * it.inner, it.hidden), dtype=half)
        # At worst each row is a block of its own.
        self._u = torch.empty(rows * BLOCK_ROWS * self._max_ranks, dtype=half)
        self._factors = torch.empty(rows * widest_in, dtype=torch.float32)
        tensors = (self._x, self._halves, self._qkv, self._wide, self._u, self._factors)
        self._work = WorkStruct(*(tensor.data_ptr() for tensor in tensors))
        self._rows = rows
