"""The gate refuses each malformed adapter for its own reason, and takes every valid variant."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from adapters_registry.base import BaseSpec
from adapters_registry.check import check_adapter
from adapters_registry.content import CONFIG_FILE, WEIGHTS_FILE
from adapters_registry.errors import AdapterRejected
from tests.llama import LLAMA31_8B, LLAMA31_70B, LLAMA32_1B
from tests.tiny import AdapterFactory

Tensors = dict[str, np.ndarray]
Q0 = "base_model.model.model.layers.0.self_attn.q_proj"


def codes(directory: Path, base: BaseSpec) -> set[str]:
    with pytest.raises(AdapterRejected) as rejection:
        check_adapter(directory, base)
    return {reason.code for reason in rejection.value.reasons}


@pytest.mark.parametrize("rank", [1, 3, 8])
@pytest.mark.parametrize("config", [{}, {"use_rslora": True}, {"use_dora": False, "bias": "none"}])
def test_valid(
    make_adapter: AdapterFactory, tiny_base: BaseSpec, rank: int, config: dict[str, Any]
) -> None:
    facts = check_adapter(make_adapter(rank=rank, config=config), tiny_base)
    assert facts.rank == rank
    assert facts.target_modules == ["down_proj", "q_proj"]
    assert facts.num_layers == 2


@pytest.mark.parametrize("config", [LLAMA31_8B, LLAMA31_70B, LLAMA32_1B])
def test_each_llamas_adapter_fits_it_alone(config: dict[str, Any], tmp_path: Path) -> None:
    base = BaseSpec.from_config("llama", config, max_rank=8)
    first_layer = {n: s for n, s in base.modules.items() if n.startswith("model.layers.0.")}
    weights = {}
    for name, shape in first_layer.items():
        weights[f"base_model.model.{name}.lora_A.weight"] = np.ones((1, shape.in_features), "f4")
        weights[f"base_model.model.{name}.lora_B.weight"] = np.ones((shape.out_features, 1), "f4")
    save_file(weights, tmp_path / WEIGHTS_FILE)
    values = {"peft_type": "LORA", "r": 1, "lora_alpha": 0.01, "target_modules": "all-linear"}
    (tmp_path / CONFIG_FILE).write_text(json.dumps(values))
    assert len(check_adapter(tmp_path, base).target_modules) == 7
    for other in (LLAMA31_8B, LLAMA31_70B, LLAMA32_1B):
        if other is not config:
            assert codes(tmp_path, BaseSpec.from_config("other", other, 8)) == {"bad_shape"}


def as_bfloat16(directory: Path) -> None:
    """Rewrite the weights as bfloat16, float32's upper half, which numpy can't save."""
    weights = load_file(directory / WEIGHTS_FILE)
    header, data = {}, b""
    for key, values in weights.items():
        raw = (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
        offsets = [len(data), len(data) + len(raw)]
        header[key] = {"dtype": "BF16", "shape": list(values.shape), "data_offsets": offsets}
        data += raw
    text = json.dumps(header).encode()
    (directory / WEIGHTS_FILE).write_bytes(len(text).to_bytes(8, "little") + text + data)


def test_valid_dtypes_and_keys(make_adapter: AdapterFactory, tiny_base: BaseSpec) -> None:
    half = make_adapter(tensors=lambda t: {k: v.astype(np.float16) for k, v in t.items()})
    bare = make_adapter(
        tensors=lambda t: {k.removeprefix("base_model.model."): v for k, v in t.items()}
    )
    brain = make_adapter()
    as_bfloat16(brain)
    for directory in (half, bare, brain):
        assert check_adapter(directory, tiny_base).rank == 2


def test_nan_in_bfloat16(make_adapter: AdapterFactory, tiny_base: BaseSpec) -> None:
    directory = make_adapter(tensors=replace(A, np.full((2, 16), np.nan, np.float32)))
    as_bfloat16(directory)
    assert codes(directory, tiny_base) == {"not_finite"}


def test_valid_rank_pattern(make_adapter: AdapterFactory, tiny_base: BaseSpec) -> None:
    def widen(tensors: Tensors) -> Tensors:
        tensors[f"{Q0}.lora_A.weight"] = np.ones((4, 16), np.float32)
        tensors[f"{Q0}.lora_B.weight"] = np.ones((16, 4), np.float32)
        return tensors

    config = {"rank_pattern": {"layers.0.self_attn.q_proj": 4}}
    assert check_adapter(make_adapter(config=config, tensors=widen), tiny_base).rank == 4
    assert codes(make_adapter(tensors=widen), tiny_base) == {"bad_shape"}


@pytest.mark.parametrize(
    ("config", "code"),
    [
        ({"peft_type": "IA3"}, "not_lora"),
        ({"r": 0}, "bad_rank"),
        ({"r": "2"}, "bad_rank"),
        ({"r": True}, "bad_rank"),
        ({"lora_alpha": float("nan")}, "bad_alpha"),
        ({"lora_alpha": float("inf")}, "bad_alpha"),
        ({"lora_alpha": None}, "bad_alpha"),
        ({"lora_alpha": 10**400}, "bad_alpha"),
        ({"target_modules": None}, "bad_targets"),
        ({"target_modules": []}, "bad_targets"),
        ({"bias": None}, "unsupported_feature"),
        ({"use_bdlora": {"x": 1}}, "unsupported_feature"),
        ({"init_lora_weights": "brand_new"}, "unsupported_feature"),
        ({"rank_pattern": {"q_proj": 2.0}}, "bad_rank"),
        ({"rank_pattern": {"(a+)+$": 2}}, "bad_rank"),
        ({"rank_pattern": {"up_proj": 16}}, "rank_too_large"),
        ({"lora_alpha": 1e38}, "too_large"),
        ({"use_dora": True}, "unsupported_feature"),
        ({"bias": "all"}, "unsupported_feature"),
        ({"lora_bias": True}, "unsupported_feature"),
        ({"modules_to_save": ["lm_head"]}, "unsupported_feature"),
        ({"alpha_pattern": {"q_proj": 8}}, "unsupported_feature"),
        ({"fan_in_fan_out": True}, "unsupported_feature"),
        ({"layer_replication": [[0, 2]]}, "unsupported_feature"),
        ({"trainable_token_indices": [1]}, "unsupported_feature"),
        ({"init_lora_weights": "pissa_niter_4"}, "unsupported_feature"),
        ({"init_lora_weights": "OLoRA"}, "unsupported_feature"),
        ({"r": 4}, "bad_shape"),
    ],
)
def test_bad_config(
    make_adapter: AdapterFactory, tiny_base: BaseSpec, config: dict[str, Any], code: str
) -> None:
    assert code in codes(make_adapter(config=config), tiny_base)


def replace(key: str, value: np.ndarray) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, key: value}


def without(key: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {k: v for k, v in tensors.items() if k != key}


A, B = f"{Q0}.lora_A.weight", f"{Q0}.lora_B.weight"
ONES = np.ones((2, 16), np.float32)


@pytest.mark.parametrize(
    ("bend", "code"),
    [
        (replace(A, np.full((2, 16), np.nan, np.float32)), "not_finite"),
        (replace(B, np.full((16, 2), np.inf, np.float32)), "not_finite"),
        (replace(B, np.full((16, 2), 1e30, np.float32)), "too_large"),
        (replace(A, ONES.T.copy()), "bad_shape"),
        (replace(A, ONES[:, :8].copy()), "bad_shape"),
        (replace(A, np.ones((2, 32), np.float32)), "bad_shape"),
        (replace(A, np.ones(16, np.float32)), "bad_shape"),
        (replace(A, np.ones((1, 2, 16), np.float32)), "bad_shape"),
        (replace(A, ONES.astype(np.int8)), "bad_dtype"),
        (replace(A, ONES.astype(np.float64)), "bad_dtype"),
        (without(A), "unpaired"),
        (without(B), "unpaired"),
        (replace("base_model.model.model.layers.9.mlp.up_proj.lora_A.weight", ONES), "unknown_key"),
        (replace("other.model.layers.0.self_attn.q_proj.lora_A.weight", ONES), "unknown_key"),
        (replace(f"{Q0}.lora_A.default.weight", ONES), "unknown_key"),
        (replace("base_model.model.lm_head.lora_A.weight", ONES), "unknown_key"),
        (replace(f"{Q0}.lora_magnitude_vector", ONES), "unknown_key"),
        (lambda _: {}, "no_tensors"),
        (lambda t: {k: v * 0 if "lora_B" in k else v for k, v in t.items()}, "no_effect"),
    ],
)
def test_bad_tensors(
    make_adapter: AdapterFactory, tiny_base: BaseSpec, bend: Any, code: str
) -> None:
    assert codes(make_adapter(tensors=bend), tiny_base) == {code}


def test_rank_over_the_limit(make_adapter: AdapterFactory, tiny_base: BaseSpec) -> None:
    assert codes(make_adapter(rank=9), tiny_base) == {"rank_too_large"}


def test_reasons_are_bounded_and_can_be_sent(
    make_adapter: AdapterFactory, tiny_base: BaseSpec
) -> None:
    many = {f"\ud800{number}" + "x" * 999: 1 for number in range(500)}
    config = {"rank_pattern": many, "base_model_name_or_path": "\ud800"}
    with pytest.raises(AdapterRejected) as rejection:
        check_adapter(make_adapter(config=config), tiny_base)
    reasons = [reason.__dict__ for reason in rejection.value.reasons]
    assert len(json.dumps(reasons, ensure_ascii=False).encode()) < 200_000
    facts = check_adapter(make_adapter(config={"base_model_name_or_path": "\ud800"}), tiny_base)
    assert facts.base_model == "?"


HUGE_HEADER = (100 << 30).to_bytes(8, "little") + b"{}"


@pytest.mark.parametrize("weights", [b"", b"\x80\x04.", HUGE_HEADER, b"\x02" + b"\0" * 7 + b"[]"])
def test_no_safetensors(make_adapter: AdapterFactory, tiny_base: BaseSpec, weights: bytes) -> None:
    directory = make_adapter()
    (directory / WEIGHTS_FILE).write_bytes(weights)
    assert codes(directory, tiny_base) == {"weights_unreadable"}


def test_truncated(make_adapter: AdapterFactory, tiny_base: BaseSpec) -> None:
    directory = make_adapter()
    file = directory / WEIGHTS_FILE
    file.write_bytes(file.read_bytes()[:-10])
    assert codes(directory, tiny_base) == {"weights_unreadable"}


@pytest.mark.parametrize("config", ["[]", "{", "null", "[" * 100_000, " " * (2 << 20)])
def test_bad_config_file(make_adapter: AdapterFactory, tiny_base: BaseSpec, config: str) -> None:
    directory = make_adapter()
    (directory / CONFIG_FILE).write_text(config)
    assert codes(directory, tiny_base) == {"config_unreadable"}


def test_all_reasons_at_once(make_adapter: AdapterFactory, tiny_base: BaseSpec) -> None:
    config = {"use_dora": True, "bias": "all"}
    directory = make_adapter(config=config, tensors=without(A))
    with pytest.raises(AdapterRejected) as rejection:
        check_adapter(directory, tiny_base)
    assert [reason.code for reason in rejection.value.reasons] == [
        "unsupported_feature",
        "unsupported_feature",
        "unpaired",
    ]
    assert all(reason.key for reason in rejection.value.reasons)
    json.dumps([reason.__dict__ for reason in rejection.value.reasons])
