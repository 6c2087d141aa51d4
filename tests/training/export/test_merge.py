"""Merged models against PEFT on the whole model, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from training.errors import TrainingError
from training.export import merge
from training.export.merge import merge_adapter
from training.export.parity import parity_of, probe_texts
from training.models import checkpoint
from training.models.base_model import load_model
from training.quantization.nf4 import round_checkpoint_to_nf4, round_to_nf4


def make_adapter(base: Path, directory: Path, seed: int = 1, **config: Any) -> Path:
    """An adapter of random weights, by PEFT itself."""
    torch.manual_seed(seed)
    model = load_model(base, torch.float32)
    options = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], **config}
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **options))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    adapted.save_pretrained(directory)
    return directory


def mark_trained_over(adapter: Path, quantization: str) -> None:
    file = adapter / "adapter_model.safetensors"
    save_file(load_file(file), file, metadata={"format": "pt", "trained_over": quantization})


def logits(model: Any, texts: list[list[int]]) -> torch.Tensor:
    with torch.inference_mode():
        return torch.cat([model.float()(torch.tensor([text])).logits[0] for text in texts])


@pytest.mark.parametrize(
    "config",
    [{}, {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 3}}],
)
def test_merged_in_float32_is_peft_on_the_base(
    tiny_llama: Path, tmp_path: Path, config: dict[str, Any]
) -> None:
    adapter, out = make_adapter(tiny_llama, tmp_path / "adapter", **config), tmp_path / "out"
    parity = merge_adapter(adapter, tiny_llama, out, dtype="float32")
    texts = probe_texts(tiny_llama)
    expected = logits(PeftModel.from_pretrained(load_model(tiny_llama), adapter), texts)
    merged = AutoModelForCausalLM.from_pretrained(out)
    assert merged.dtype == torch.float32
    gap = (logits(merged, texts) - expected).abs().max()
    assert gap <= 1e-4
    assert (logits(load_model(tiny_llama), texts) - expected).abs().max() > 0.1
    assert parity.max_difference <= 1e-4
    assert parity.num_positions == len(expected)
    assert parity.top1 == 1


def test_merged_in_bfloat16_is_a_whole_model_directory(tiny_llama: Path, tmp_path: Path) -> None:
    adapter, out = make_adapter(tiny_llama, tmp_path / "adapter"), tmp_path / "out"
    parity = merge_adapter(adapter, tiny_llama, out)
    assert 0 < parity.divergence < 1e-3
    names = {file.name for file in tiny_llama.iterdir()} - {"model.safetensors"}
    assert names < {file.name for file in out.iterdir()}
    assert (out / "chat_template.jinja").read_text() == (
        tiny_llama / "chat_template.jinja"
    ).read_text()
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.dtype == torch.bfloat16


def test_rounding_may_swap_tokens_that_are_nearly_as_likely() -> None:
    expected = torch.tensor([[0.50, 0.48, 0.02], [0.55, 0.43, 0.02], [0.9, 0.05, 0.05]]).log()
    swapped = expected[:, [1, 0, 2]]
    parity = parity_of(expected, torch.cat([swapped[:2], expected[2:]]))
    assert parity.top1 == pytest.approx(2 / 3), "the second pair is too far apart"
    assert parity.divergence > 0


def test_files_of_bounded_size(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "MAX_FILE_BYTES", 100_000)
    merge_adapter(make_adapter(tiny_llama, tmp_path / "adapter"), tiny_llama, tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1


def test_a_rounded_base_is_the_one_that_qlora_trains_over(tiny_llama: Path, tmp_path: Path) -> None:
    round_checkpoint_to_nf4(tiny_llama, tmp_path / "nf4")
    config = json.loads((tmp_path / "nf4" / "config.json").read_text())
    assert config.pop("quantized_from") == "tiny-llama"
    assert config.pop("rounded_to") == "nf4"
    assert config == json.loads((tiny_llama / "config.json").read_text())
    from bitsandbytes.functional import dequantize_4bit

    trained_over = load_model(tiny_llama, nf4=True)
    rounded, original = load_model(tmp_path / "nf4"), load_model(tiny_llama)
    num_rounded = 0
    for name, module in trained_over.named_modules():
        if type(module).__name__ == "Linear4bit":
            weight = dequantize_4bit(module.weight.data, module.weight.quant_state)
            assert torch.equal(weight, rounded.get_submodule(name).weight), name
            assert not torch.equal(weight, original.get_submodule(name).weight), name
            num_rounded += 1
    assert num_rounded == 14
    assert torch.equal(rounded.model.embed_tokens.weight, original.model.embed_tokens.weight)


def test_a_qlora_adapter_is_merged_into_what_it_was_trained_over(
    tiny_llama: Path, tmp_path: Path
) -> None:
    adapter = make_adapter(tiny_llama, tmp_path / "adapter")
    mark_trained_over(adapter, "nf4")
    right = merge_adapter(adapter, tiny_llama, tmp_path / "right", dtype="float32")
    other = merge_adapter(adapter, tiny_llama, tmp_path / "other", "float32", over="original")
    assert right.max_difference < 1e-4
    assert other.divergence > 100 * max(right.divergence, 1e-6)
    name = "model.layers.0.mlp.up_proj.weight"
    weight = load_file(tiny_llama / "model.safetensors")[name]
    merged = {
        part: next(load_file(f)[name] for f in (tmp_path / part).glob("*.safetensors"))
        for part in ("right", "other")
    }
    assert torch.equal(merged["right"], round_to_nf4(weight).float())
    assert torch.equal(merged["other"], weight.float())
    round_checkpoint_to_nf4(tiny_llama, tmp_path / "nf4")
    same = merge_adapter(adapter, tmp_path / "nf4", tmp_path / "same", dtype="float32")
    assert same.max_difference < 1e-4, "a rounded base isn't rounded again"
    assert "rounded_to" not in json.loads((tmp_path / "same" / "config.json").read_text())


def test_a_wrong_merge_is_found_and_nothing_is_kept(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = make_adapter(tiny_llama, tmp_path / "adapter")
    monkeypatch.setattr(merge, "merged_weight", lambda weight, update: weight.float())
    for dtype in merge.DTYPES:
        with pytest.raises(TrainingError, match="differs from base and adapter: logits differ"):
            merge_adapter(adapter, tiny_llama, tmp_path / "out", dtype)
    assert {file.name for file in tmp_path.iterdir()} == {"adapter"}


def test_what_cannot_be_merged(tiny_llama: Path, tmp_path: Path) -> None:
    adapter, out = make_adapter(tiny_llama, tmp_path / "adapter"), tmp_path / "out"
    with pytest.raises(TrainingError, match="--dtype is bfloat16 or float32"):
        merge_adapter(adapter, tiny_llama, out, dtype="int8")
    with pytest.raises(TrainingError, match="is no adapter"):
        merge_adapter(tiny_llama, tiny_llama, out)
    with pytest.raises(TrainingError, match="no model directory"):
        merge_adapter(adapter, tmp_path, out)
    spoilt = tmp_path / "spoilt"
    shutil.copytree(adapter, spoilt)
    config = json.loads((spoilt / "adapter_config.json").read_text())
    (spoilt / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    with pytest.raises(TrainingError, match="DoRA can't be served"):
        merge_adapter(spoilt, tiny_llama, out)
    with pytest.raises(TrainingError, match="isn't empty"):
        merge_adapter(adapter, tiny_llama, adapter)
