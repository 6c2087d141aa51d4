"""Finds in vLLM's model what `decoder.c` reads, and says why a model doesn't fit."""

from __future__ import annotations

from typing import Any

import torch
from vllm import _custom_ops as ops
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.model_executor.layers.activation import SiluAndMul
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding
from vllm.model_executor.models.llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaMLP,
    LlamaModel,
)
from vllm.v1.attention.backend import AttentionType
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl

from server.engine.worker.decoder_cpu.kernel import (
    Batch,
    Decoder,
    DecoderStruct,
    LayerStruct,
    ProjectionStruct,
)
from server.engine.worker.linear_cpu.kernel import PackedLinear
from server.engine.worker.lora_cpu.packing import PackedLayer
from server.engine.worker.punica import GroupedPunicaWrapper

LANES = 16
HEAD_FEATURES = (32, 64, 96, 128, 256)


class DoesNotFit(Exception):
    """vLLM's model has something that `decoder.c` doesn't compute."""


def read_decoder(model: Any, step: Batch) -> Decoder:
    """Return the layers of a `LlamaModel`, after its KV cache has been allocated.

    `step`: one that vLLM has prepared, as all others will be.

    Raises:
        DoesNotFit: the model, or how vLLM runs it, isn't what `decoder.c` computes.
        KernelUnavailable: there is no compiler, or compiling or loading fails.
    """
    _require(type(model) is LlamaModel, f"{type(model).__name__} is not LlamaModel")
    _require(model.start_layer == 0 and model.end_layer == len(model.layers), "other processes")
    _require(not model.aux_hidden_state_layers, "a draft model reads its layers")
    _check_step(step)
    layers = (LayerStruct * len(model.layers))(*(_layer(layer) for layer in model.layers))
    first = model.layers[0].self_attn
    rotary = first.rotary_emb
    cache = first.attn.kv_cache
    struct = DecoderStruct(
        num_layers=len(model.layers),
        hidden=model.config.hidden_size,
        heads=first.num_heads,
        kv_heads=first.num_kv_heads,
        head_features=first.head_dim,
        inner=model.layers[0].mlp.down_proj.input_size,
        block_tokens=cache.shape[2],
        block_stride=cache.stride(0),
        has_pairs=_has_pairs(first),
        rotary=rotary.rotary_dim,
        epsilon=model.norm.variance_epsilon,
        scale=first.scaling,
        cos_sin=rotary.cos_sin_cache.data_ptr(),
        norm=_norm(model.norm),
        layers=layers,
    )
    _require(struct.hidden % LANES == struct.inner % LANES == 0, "odd sizes")
    _require(struct.head_features in HEAD_FEATURES, f"heads of {struct.head_features} features")
    return Decoder(struct, _max_ranks(model), (model, layers))


def _check_step(step: Batch) -> None:
    types = [step.positions.dtype, step.slots.dtype, step.lengths.dtype, step.tables.dtype]
    _require(types == [torch.int64, torch.int64, torch.int32, torch.int32], f"a step of {types}")
    parts = (step.positions, step.slots, step.lengths, step.tables[0])
    _require(all(part.is_contiguous() for part in parts), "a step in parts")


def _layer(layer: Any) -> LayerStruct:
    attention, mlp = layer.self_attn, layer.mlp
    _require(type(layer) is LlamaDecoderLayer, type(layer).__name__)
    _require(type(attention) is LlamaAttention, type(attention).__name__)
    _require(type(mlp) is LlamaMLP and type(mlp.act_fn) is SiluAndMul, "another activation")
    _check_attention(attention)
    return LayerStruct(
        _projection(attention.qkv_proj),
        _projection(attention.o_proj),
        _projection(mlp.gate_up_proj),
        _projection(mlp.down_proj),
        _norm(layer.input_layernorm),
        _norm(layer.post_attention_layernorm),
        attention.attn.kv_cache.data_ptr(),
    )


def _check_attention(attention: Any) -> None:
    implementation, rotary = attention.attn.impl, attention.rotary_emb
    plain = (
        type(implementation) is CPUAttentionBackendImpl
        and implementation.attn_type == AttentionType.DECODER
        and implementation.sliding_window == -1
        and implementation.alibi_slopes is None
        and implementation.sinks is None
        and not implementation.logits_soft_cap
        and not implementation.is_fp8_kv_cache
        and implementation.kv_sharing_target_layer_name is None
    )
    _require(plain, "attention that isn't plain")
    turns = type(rotary).forward_cpu is RotaryEmbedding.forward_cpu and rotary.is_neox_style
    _require(turns and rotary.cos_sin_cache.dtype == torch.bfloat16, "other positions")
    _require(attention.attn.kv_cache.dtype == torch.bfloat16, "a cache of another type")


def _has_pairs(attention: Any) -> bool:
    """Say which of the forms of `cache.h` vLLM's cache has.

    vLLM puts a key and a value into a small cache, which shows where they are.
    """
    heads, features, tokens = 2, attention.head_dim, attention.attn.kv_cache.shape[2]
    cache = torch.zeros(2, heads, tokens, 2 * features, dtype=torch.bfloat16)
    parts = cache.view(2, heads, 2 * tokens, features).chunk(2, dim=2)
    key, value = torch.randn(2, 1, heads, features).to(torch.bfloat16)
    token = 21
    slot = torch.tensor([tokens + token])
    ops.cpu_attn_reshape_and_cache(key, value, *parts, slot, attention.attn.isa)
    _require(attention.attn.kv_cache[0].is_contiguous(), "a cache in parts")
    for has_pairs, put in ((False, _put), (True, _put_pairs)):
        expected = torch.zeros_like(cache)
        put(expected[1], token, key[0], value[0])
        if torch.equal(cache, expected):
            return has_pairs
    raise DoesNotFit(f"the cache's layout ({attention.attn.isa})")


def _put(block: torch.Tensor, token: int, key: torch.Tensor, value: torch.Tensor) -> None:
    """Write a key and a value (heads, features) into a block (heads, tokens, 2 * features)."""
    heads, features = key.shape
    keys, values = block.view(heads, 2, -1).unbind(1)
    keys.view(heads, features, -1)[:, :, token] = key
    values.view(heads, -1, features)[:, token] = value


def _put_pairs(block: torch.Tensor, token: int, key: torch.Tensor, value: torch.Tensor) -> None:
    """As `_put`, in the form in pairs."""
    heads, features = key.shape
    group, within = divmod(token, LANES)
    keys, values = block.view(heads, 2, -1).unbind(1)
    pairs = keys.view(heads, -1, features // 2, LANES, 2)
    pairs[:, group, :, within] = key.view(heads, -1, 2)
    pairs = values.view(heads, features // LANES, -1, LANES, 2)
    pairs[:, :, token // 2, :, token % 2] = value.view(heads, -1, LANES)


def _norm(norm: Any) -> int:
    plain = type(norm) is RMSNorm and norm.variance_size_override is None
    weight = norm.weight if plain else None
    if weight is None or weight.dtype != torch.bfloat16 or not weight.is_contiguous():
        raise DoesNotFit("another norm")
    address: int = weight.data_ptr()
    return address


def _projection(module: Any) -> ProjectionStruct:
    base = getattr(module, "base_layer", module)
    packed = getattr(base, "loraplex_packed", None)
    if not isinstance(packed, PackedLinear) or base.tp_size > 1:
        raise DoesNotFit("vLLM's matrix products are used")
    return ProjectionStruct(packed.struct(with_bias=base.bias is not None), _adapters(module))


def _adapters(module: Any) -> int | None:
    if not isinstance(module, BaseLinearLayerWithLoRA):
        return None
    punica = module.punica_wrapper
    _require(isinstance(punica, GroupedPunicaWrapper), "other LoRA operators")
    layer = _slots_of(module)
    _require(punica.kernel is not None and layer.for_kernel, "LoRA without its kernel")
    address: int = layer.address
    return address


def _max_ranks(model: Any) -> int:
    wrapped = (m for m in model.modules() if isinstance(m, BaseLinearLayerWithLoRA))
    return max((_slots_of(module).max_ranks for module in wrapped), default=0)


def _slots_of(module: Any) -> PackedLayer:
    layer: PackedLayer = module.punica_wrapper.layer(
        module.lora_a_stacked, module.lora_b_stacked, module.output_slices
    )
    return layer


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise DoesNotFit(otherwise)
