"""Merged models against PEFT on the whole model, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.training.adapters import make_adapter, mark_trained_quantization
from training.errors import TrainingError
from training.export import merge
from training.export.merge import merge_adapter
from training.export.parity import probe_texts
from training.models.base_model import load_model
from training.quantization.nf4 import round_checkpoint_to_nf4, round_to_nf4


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


def test_a_qlora_adapter_is_merged_into_what_it_was_trained_over(
    tiny_llama: Path, tmp_path: Path
) -> None:
    adapter = make_adapter(tiny_llama, tmp_path / "adapter")
    mark_trained_quantization(adapter, "nf4")
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
    with pytest.raises(TrainingError, match="--dtype must be bfloat16 or float32"):
        merge_adapter(adapter, tiny_llama, out, dtype="int8")
    with pytest.raises(TrainingError, match="isn't an adapter"):
        merge_adapter(tiny_llama, tiny_llama, out)
    with pytest.raises(TrainingError, match="isn't a model directory"):
        merge_adapter(adapter, tmp_path, out)
    spoilt = tmp_path / "spoilt"
    shutil.copytree(adapter, spoilt)
    config = json.loads((spoilt / "adapter_config.json").read_text())
    (spoilt / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    with pytest.raises(TrainingError, match="DoRA can't be served"):
        merge_adapter(spoilt, tiny_llama, out)
    with pytest.raises(TrainingError, match="isn't empty"):
        merge_adapter(adapter, tiny_llama, adapter)


def test_the_merged_model_keeps_what_the_adapter_brings(tiny_llama: Path, tmp_path: Path) -> None:
    adapter, out = make_adapter(tiny_llama, tmp_path / "adapter"), tmp_path / "out"
    (adapter / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ 1 }}"}))
    (adapter / "generation_config.json").write_text(json.dumps({"temperature": 0.25}))
    merge_adapter(adapter, tiny_llama, out, dtype="float32")
    assert AutoTokenizer.from_pretrained(out).chat_template == "{{ 1 }}"
    own = json.loads((out / "generation_config.json").read_text())
    of_base = json.loads((tiny_llama / "generation_config.json").read_text())
    assert own == of_base | {"temperature": 0.25}
