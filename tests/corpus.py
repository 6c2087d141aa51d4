"""Adapters of every kind: valid variants, and malformed ones with the code of why."""

from __future__ import annotations

import numpy as np

from adapters_registry.check.base import BaseSpec
from adapters_registry.content.adapter_files import CONFIG_FILE, WEIGHTS_FILE
from tests.adapter_recipe import (
    ALL_MODULES,
    PREFIX,
    Q0,
    A,
    B,
    Recipe,
    as_bfloat16,
    config,
    copied,
    damaged,
    each,
    edit_header,
    header,
    link_weights,
    one,
    renamed,
    unreadable,
    without,
    write,
)

MALFORMED: dict[str, Recipe] = {
    # the files
    "config is a list": unreadable(CONFIG_FILE, b"[]"),
    "config is null": unreadable(CONFIG_FILE, b"null"),
    "config is cut off": unreadable(CONFIG_FILE, b'{"peft_type": "LORA", '),
    "config is nested too deeply": unreadable(CONFIG_FILE, b"[" * 100_000),
    "config is too large": unreadable(CONFIG_FILE, b" " * (2 << 20)),
    "config is not UTF-8": unreadable(CONFIG_FILE, '{"r": "ü"}'.encode("latin-1")),
    "weights are empty": unreadable(WEIGHTS_FILE, b""),
    "weights are a pickle": unreadable(WEIGHTS_FILE, b"\x80\x04\x8c\x05posix\x8c\x06system\x93."),
    "header claims 100 GB": unreadable(WEIGHTS_FILE, header(100 << 30, b"{}")),
    "header is longer than the file": unreadable(WEIGHTS_FILE, header(1000, b"{}")),
    "header is a list": unreadable(WEIGHTS_FILE, header(2, b"[]")),
    "header is padded to megabytes": unreadable(
        WEIGHTS_FILE, header(9 << 20, b"{}" + b" " * (9 << 20))
    ),
    "weights are cut off": damaged(lambda content: content[:-10]),
    "weights have a tail": damaged(lambda content: content + b"#!/bin/sh"),
    "offsets beyond the file": Recipe(
        "weights_unreadable", after=edit_header(lambda h: h[A].update(data_offsets=[0, 1 << 40]))
    ),
    "offsets that overlap": Recipe(
        "weights_unreadable",
        after=edit_header(lambda h: h[A].update(data_offsets=h[B]["data_offsets"])),
    ),
    "shape that its bytes don't have": Recipe(
        "weights_unreadable", after=edit_header(lambda h: h[A].update(shape=[1 << 40, 1 << 40]))
    ),
    "no tensors": Recipe("no_tensors", bend=lambda _: {}),
    "a pickle beside": Recipe(
        "unexpected_file", after=write("adapter_model.bin", b"\x80\x04."), upload=False
    ),
    "code beside": Recipe("unexpected_file", after=write("model.py", b"import os"), upload=False),
    "weights are a link": Recipe("not_a_file", after=link_weights, upload=False),
    # what kind of adapter it is
    "IA3": config("not_lora", peft_type="IA3"),
    "no type": config("not_lora", peft_type=None),
    "DoRA": config("unsupported_feature", use_dora=True),
    "bias": config("unsupported_feature", bias="all"),
    "bias of another type": config("unsupported_feature", bias=None),
    "LoRA bias": config("unsupported_feature", lora_bias=True),
    "a trained head": Recipe(
        "unsupported_feature",
        config={"modules_to_save": ["lm_head"]},
        bend=lambda tensors: (
            tensors | {"base_model.model.lm_head.weight": np.zeros((2, 2), np.float32)}
        ),
    ),
    "transposed weights": config("unsupported_feature", fan_in_fan_out=True),
    "replicated layers": config("unsupported_feature", layer_replication=[[0, 2]]),
    "trained tokens": config("unsupported_feature", trainable_token_indices=[1]),
    "adapted parameters": config("unsupported_feature", target_parameters=["experts.w"]),
    "activated LoRA": config("unsupported_feature", alora_invocation_tokens=[1, 2]),
    "QALoRA": config("unsupported_feature", use_qalora=True),
    "block-diagonal LoRA": config("unsupported_feature", use_bdlora={"n": 2}),
    "Arrow": config("unsupported_feature", arrow_config={"top_k": 2}),
    "KaSA": config("unsupported_feature", kasa_config={"beta": 1}),
    "MonteCLoRA": config("unsupported_feature", monteclora_config={"n": 2}),
    "PiSSA": config("unsupported_feature", init_lora_weights="pissa_niter_4"),
    "OLoRA": config("unsupported_feature", init_lora_weights="OLoRA"),
    "CorDA": config("unsupported_feature", init_lora_weights="corda"),
    "LoftQ": config("unsupported_feature", init_lora_weights="loftq"),
    "an initialisation of tomorrow": config("unsupported_feature", init_lora_weights="brand_new"),
    "a switch of tomorrow": config("unknown_feature", use_tomorrow=True),
    "a structure of tomorrow": config("unknown_feature", tomorrow_config={"n": 2}),
    "another base": config("base_mismatch", base_model_name_or_path="meta-llama/Llama-3.2-1B"),
    "a checkpoint of a training run": config(
        "base_mismatch", base_model_name_or_path="/run/step-9"
    ),
    # rank and scale
    "rank 0": config("bad_rank", r=0),
    "rank as text": config("bad_rank", r="2"),
    "rank that is true": config("bad_rank", r=True),
    "no rank": config("bad_rank", r=None),
    "rank other than the tensors'": config("bad_shape", r=4),
    "rank over the limit": Recipe("rank_too_large", rank=17),
    "claimed rank over the limit": config("rank_too_large", r=1024),
    "pattern's rank over the limit": config("rank_too_large", rank_pattern={"up_proj": 1024}),
    "tensors' rank over the limit": Recipe("rank_too_large", ranks={"q_proj": 17}),
    "pattern of another type": config("bad_rank", rank_pattern=[2]),
    "pattern's rank no whole number": config("bad_rank", rank_pattern={"q_proj": 2.0}),
    "pattern that takes for ever": config("bad_rank", rank_pattern={r"([a-z_.0-9]+)+!": 2}),
    "pattern of an alpha that takes for ever": config(
        "bad_alpha", alpha_pattern={r"(([a-z]*)*_?\.?)*!": 2}
    ),
    "pattern that is none": config("bad_rank", rank_pattern={"q_proj)": 2}),
    "pattern that is long": config("bad_rank", rank_pattern={"(q|k)_proj" * 60: 2}),
    "too many expressions": config("bad_rank", rank_pattern={f"q{n}+": 2 for n in range(300)}),
    "alpha NaN": config("bad_alpha", lora_alpha=float("nan")),
    "alpha infinite": config("bad_alpha", lora_alpha=float("inf")),
    "alpha as text": config("bad_alpha", lora_alpha="16"),
    "no alpha": config("bad_alpha", lora_alpha=None),
    "alpha beyond floats": config("bad_alpha", lora_alpha=10**400),
    "pattern's alpha NaN": config("bad_alpha", alpha_pattern={"q_proj": float("nan")}),
    "alpha overflows": config("overflow", lora_alpha=1e38),
    "pattern's alpha overflows": config("overflow", alpha_pattern={"q_proj": 1e38}),
    "alpha too large": config("too_large", lora_alpha=4000),
    "alpha 0": config("no_effect", lora_alpha=0),
    "targets nothing": config("bad_targets", target_modules=[]),
    "no targets": config("bad_targets", target_modules=None),
    # keys
    "a layer that the base lacks": Recipe(
        "unknown_key", bend=renamed(lambda key: key.replace("layers.1.", "layers.99."))
    ),
    "a foreign prefix": Recipe(
        "unknown_key", bend=renamed(lambda key: key.replace("base_model.model.", "transformer."))
    ),
    "keys without the causal model": Recipe(
        "unknown_key", bend=renamed(lambda key: key.replace("model.model.model.", "model.model."))
    ),
    "the adapter's name in keys": Recipe(
        "unknown_key", bend=renamed(lambda key: key.replace(".weight", ".default.weight"))
    ),
    "an adapted head": Recipe("unknown_key", bend=copied(f"{PREFIX}lm_head.lora_A.weight")),
    "an adapted embedding": Recipe(
        "unknown_key", bend=copied(f"{PREFIX}model.embed_tokens.lora_embedding_A")
    ),
    "fused projections": Recipe(
        "unknown_key", bend=renamed(lambda key: key.replace("q_proj", "qkv_proj"))
    ),
    "DoRA's magnitudes": Recipe("unknown_key", bend=copied(f"{Q0}.lora_magnitude_vector.weight")),
    "the same key twice": Recipe("duplicate_key", bend=copied(A.removeprefix(PREFIX))),
    "no A": Recipe("unpaired", bend=without(A)),
    "no B": Recipe("unpaired", bend=without(B)),
    # tensors
    "A transposed": Recipe("bad_shape", bend=each(lambda v: v.T.copy(), A)),
    "A too narrow": Recipe("bad_shape", bend=each(lambda v: v[:, :8].copy(), A)),
    "A too wide": Recipe("bad_shape", bend=each(lambda v: np.hstack([v, v]), A)),
    "B too short": Recipe("bad_shape", bend=each(lambda v: v[:8].copy(), B)),
    "A of one dimension": Recipe("bad_shape", bend=each(lambda v: v[0].copy(), A)),
    "A of three dimensions": Recipe("bad_shape", bend=each(lambda v: v[None].copy(), A)),
    "A of no rows": Recipe("bad_shape", bend=each(lambda v: v[:0].copy(), A)),
    "A and B exchanged": Recipe(
        "bad_shape", bend=lambda tensors: {**tensors, A: tensors[B], B: tensors[A]}
    ),
    "int8": Recipe("bad_dtype", bend=each(lambda v: v.astype(np.int8))),
    "float64": Recipe("bad_dtype", bend=each(lambda v: v.astype(np.float64))),
    "NaN in A": Recipe("not_finite", bend=one(A, np.nan)),
    "infinity in B": Recipe("not_finite", bend=one(B, np.inf)),
    "NaN in bfloat16": Recipe("not_finite", bend=one(A, np.nan), after=as_bfloat16),
    "infinity in float16": Recipe(
        "not_finite", bend=lambda t: each(lambda v: v.astype(np.float16))(one(B, np.inf)(t))
    ),
    "B overflows": Recipe("overflow", bend=each(lambda v: v * 1e30, "lora_B")),
    "one entry of A overflows": Recipe("overflow", bend=one(A, 1e5)),
    "A large, B small": Recipe(
        "overflow",
        bend=lambda tensors: {
            k: v * (1e37 if "lora_A" in k else 1e-37) for k, v in tensors.items()
        },
    ),
    "larger than the base": Recipe("too_large", bend=each(lambda v: v * 1000, B)),
    "B all zero": Recipe("no_effect", bend=each(np.zeros_like, "lora_B")),
    "A all zero": Recipe("no_effect", bend=each(np.zeros_like, "lora_A")),
}


def valid(base: BaseSpec) -> dict[str, Recipe]:
    """What must pass, up to the base's limit of rank."""
    last = f"layers.{max(int(name.split('.')[2]) for name in base.modules)}"
    return {
        "rank 1": Recipe(rank=1),
        "a rank between": Recipe(rank=3),
        "the largest rank": Recipe(rank=base.max_rank),
        "all modules": Recipe(modules=ALL_MODULES),
        "one module": Recipe(modules=("layers.0.self_attn.v_proj",)),
        "the last layer": Recipe(modules=(f"{last}.self_attn.o_proj", f"{last}.mlp.gate_proj")),
        "float16": Recipe(bend=each(lambda values: values.astype(np.float16))),
        "bfloat16": Recipe(after=as_bfloat16),
        "rsLoRA": Recipe(config={"use_rslora": True}),
        "ranks by module": Recipe(
            ranks={"q_proj": 5}, config={"rank_pattern": {"self_attn.q_proj": 5}}
        ),
        "alphas by module": Recipe(config={"alpha_pattern": {"layers.0.self_attn.q_proj": 16}}),
        "ranks by expression": Recipe(
            ranks={"layers.1.mlp.down_proj": 5},
            config={
                "rank_pattern": {r".*\.layers\.1\..*down_proj": 5},
                "alpha_pattern": {r".*\.layers\.1\..*down_proj": 8},
            },
        ),
        "an expression that matches nothing": Recipe(config={"rank_pattern": {"^q_proj": 4}}),
        "negative alpha": Recipe(config={"lora_alpha": -4}),
        "keys without a prefix": Recipe(bend=renamed(lambda key: key.removeprefix(PREFIX))),
        "as PEFT 0.2 wrote": Recipe(
            config={
                "bias": "none",
                "enable_lora": None,
                "fan_in_fan_out": False,
                "inference_mode": True,
                "lora_dropout": 0.05,
                "merge_weights": False,
                "modules_to_save": None,
                "task_type": "CAUSAL_LM",
            }
        ),
        "as PEFT 0.21 writes": Recipe(
            config={
                "alpha_pattern": {},
                "auto_mapping": None,
                "base_model_name_or_path": f"/models/{base.name}/",
                "bias": "none",
                "eva_config": None,
                "init_lora_weights": "gaussian",
                "layer_replication": None,
                "layers_to_transform": [0, 1],
                "megatron_core": "megatron.core",
                "modules_to_save": None,
                "peft_version": "0.21.2",
                "qalora_group_size": 16,
                "rank_pattern": {},
                "target_modules": "all-linear",
                "use_dora": False,
                "use_rslora": False,
            }
        ),
    }
