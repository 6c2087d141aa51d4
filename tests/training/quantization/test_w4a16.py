"""4-bit checkpoints of a tiny Llama: what is written, how near it is, what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from tests.four_bit import dequantized, weights
from training.errors import TrainingError
from training.quantization import w4a16
from training.quantization.w4a16 import quantize_checkpoint

CONFIG = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_base(tmp_path / "tiny-llama")


def make_base(directory: Path, shard_size: str = "5GB", **config: object) -> Path:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**CONFIG, **config})).to(torch.bfloat16)
    model.save_pretrained(directory, max_shard_size=shard_size)
    (directory / "tokenizer.json").write_text("{}")
    (directory / "chat_template.jinja").write_text("{{ messages }}")
    return directory


@pytest.mark.parametrize("shard_size", ["5GB", "60KB"])
def test_every_linear_layer_is_quantised_and_near(tmp_path: Path, shard_size: str) -> None:
    base = make_base(tmp_path / "tiny-llama", shard_size)
    out = tmp_path / "new" / "four-bit"
    quantize_checkpoint(base, out)
    before, after = weights(base), dequantized(out)
    assert after.keys() == before.keys()
    for name, weight in before.items():
        if "_proj" not in name:
            assert torch.equal(after[name], weight), name
            continue
        groups = weight.float().view(len(weight), -1, 32)
        step = (groups.amax(-1).clamp(min=0) - groups.amin(-1).clamp(max=0)) / 15
        error = (after[name].float() - weight.float()).view(len(weight), -1, 32)
        # Rounding to the nearest of sixteen values errs by step / sqrt(12) on the average.
        assert error.square().mean(-1).sqrt().lt(0.4 * step).all(), name
        assert error.square().mean() > 0, name
    assert sum(f.stat().st_size for f in out.glob("*.safetensors")) < 0.6 * sum(
        f.stat().st_size for f in base.glob("*.safetensors")
    )


def test_the_copy_is_a_whole_model_directory(base: Path, tmp_path: Path) -> None:
    (base / "pytorch_model.bin").write_bytes(b"the same weights once more")
    quantize_checkpoint(base, tmp_path / "out", group_size=32)
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {
        "config.json",
        "generation_config.json",
        "model-00001.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "chat_template.jinja",
    }
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config.pop("quantization_config")["quant_method"] == "compressed-tensors"
    assert config.pop("quantized_from") == base.name
    assert config == json.loads((base / "config.json").read_text())


def test_calibration_keeps_what_the_model_says_of_such_texts(base: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    texts = torch.randint(0, 64, (12, 16))
    quantize_checkpoint(base, tmp_path / "nearest")
    quantize_checkpoint(base, tmp_path / "calibrated", samples=texts[:10].tolist())

    def logits(state: dict[str, torch.Tensor]) -> torch.Tensor:
        model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
        model.load_state_dict(state)
        with torch.inference_mode():
            found: torch.Tensor = model(texts).logits
        return found

    right = logits(weights(base))
    nearest, calibrated = (
        (logits(dequantized(tmp_path / name)) - right).norm() for name in ("nearest", "calibrated")
    )
    assert calibrated < 0.9 * nearest


def edit_config(base: Path, **changes: object) -> None:
    file = base / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit_weights(base: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    tensors = load_file(base / "model.safetensors")
    tensors[name] = change(tensors[name])
    save_file(tensors, base / "model.safetensors")


Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda base: shutil.rmtree(base), "isn't a model directory"),
        (lambda base: edit_config(base, architectures=["GPT2LMHeadModel"]), "can't be a base"),
        (lambda base: edit_config(base, quantization_config={}), "quantised already"),
        (lambda base: edit_config(base, num_hidden_layers=3), "lacks 7 weights"),
        (
            lambda base: (base / "model.safetensors").unlink(),
            "isn't a model directory with weights",
        ),
        (
            lambda base: (base / "model.safetensors").write_bytes(b"cut"),
            "isn't a model directory with weights",
        ),
        (lambda base: edit_weights(base, Q_PROJ, lambda w: w * torch.nan), "aren't finite"),
        (lambda base: edit_weights(base, Q_PROJ, lambda w: w.char()), "torch.int8"),
    ],
)
def test_what_is_refused_leaves_nothing(
    base: Path, tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(base)
    with pytest.raises(TrainingError, match=message):
        quantize_checkpoint(base, tmp_path / "out")
    assert {file.name for file in tmp_path.iterdir()} <= {"tiny-llama"}


def test_sides_that_groups_do_not_divide_are_refused(tmp_path: Path) -> None:
    base = make_base(tmp_path / "odd", intermediate_size=80)
    with pytest.raises(TrainingError, match=r"gate_proj maps 64 features to 80"):
        quantize_checkpoint(base, tmp_path / "out")
    with pytest.raises(TrainingError, match=r"group size 128"):
        quantize_checkpoint(base, tmp_path / "out", group_size=128)
    with pytest.raises(TrainingError, match=r"one of 32, 64, 128"):
        quantize_checkpoint(base, tmp_path / "out", group_size=48)


def test_an_output_that_is_taken_stays_as_it_is(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").touch()
    with pytest.raises(TrainingError, match="isn't empty"):
        quantize_checkpoint(base, out)
    assert [file.name for file in out.iterdir()] == ["precious"]


def test_a_crash_half_way_leaves_nothing(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(w4a16, "_write_config", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quantize_checkpoint(base, tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["tiny-llama"]
