"""4-bit checkpoints of a tiny Llama: what is written, how near it is, what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from compressed_tensors.compressors import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationConfig
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from training import quantize
from training.errors import TrainingError
from training.quantize import quantize_checkpoint, quantize_weight

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
    model = LlamaForCausalLM(LlamaConfig(**{**CONFIG, **config})).to(torch.bfloat16)  # type: ignore[arg-type]
    model.save_pretrained(directory, max_shard_size=shard_size)
    (directory / "tokenizer.json").write_text("{}")
    (directory / "chat_template.jinja").write_text("{{ messages }}")
    return directory


def weights(directory: Path) -> dict[str, torch.Tensor]:
    files = directory.glob("*.safetensors")
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def dequantized(directory: Path) -> dict[str, torch.Tensor]:
    """Weights in full, read with what the checkpoint's own configuration says."""
    config = json.loads((directory / "config.json").read_text())["quantization_config"]
    scheme = QuantizationConfig(**config).config_groups["group_0"]
    found = weights(directory)
    for name in [name for name in found if name.endswith("weight_packed")]:
        module = name.removesuffix("weight_packed")
        parts = {
            key[len(module) :]: found.pop(key) for key in list(found) if key.startswith(module)
        }
        found[f"{module}weight"] = PackedQuantizationCompressor.decompress(parts, scheme)["weight"]
    return found


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
        groups = weight.float().unflatten(-1, (-1, 32))
        step = (groups.amax(-1).clamp(min=0) - groups.amin(-1).clamp(max=0)) / 15
        error = (after[name].float() - weight.float()).unflatten(-1, (-1, 32))
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
        "model.safetensors",
        "tokenizer.json",
        "chat_template.jinja",
    }
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config.pop("quantization_config")["quant_method"] == "compressed-tensors"
    assert config == json.loads((base / "config.json").read_text())


def test_shards_get_an_index_of_what_they_hold(tmp_path: Path) -> None:
    base = make_base(tmp_path / "tiny-llama", "60KB")
    quantize_checkpoint(base, tmp_path / "out")
    index = json.loads((tmp_path / "out" / quantize.INDEX_FILE).read_text())
    assert len(set(index["weight_map"].values())) > 1
    for name, shard in index["weight_map"].items():
        assert name in load_file(tmp_path / "out" / shard)
    assert index["metadata"]["total_size"] == sum(
        tensor.nbytes for tensor in weights(tmp_path / "out").values()
    )


def test_clipping_never_errs_more_than_the_whole_range() -> None:
    torch.manual_seed(0)
    weight = torch.randn(32, 256).half()
    scheme = quantize._scheme(32)

    def errors() -> torch.Tensor:
        """Of each group."""
        state = quantize_weight("w", weight, scheme)
        assert state["weight_scale"].dtype == torch.float16
        error = PackedQuantizationCompressor.decompress(state, scheme)["weight"].float() - weight
        return error.view(32, -1, 32).norm(dim=-1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantize, "CLIPS", [1.0])
        whole_range = errors()
    assert (errors() <= 1.01 * whole_range).all()  # float16 arithmetic of the decompression
    assert errors().mean() < 0.98 * whole_range.mean()


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
        (lambda base: shutil.rmtree(base), "no model directory"),
        (lambda base: edit_config(base, architectures=["GPT2LMHeadModel"]), "no Llama base"),
        (lambda base: edit_config(base, quantization_config={}), "quantised already"),
        (lambda base: edit_config(base, num_hidden_layers=3), "lacks 7 weights"),
        (lambda base: (base / "model.safetensors").unlink(), "no whole weights"),
        (lambda base: (base / "model.safetensors").write_bytes(b"cut"), "no whole weights"),
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

    monkeypatch.setattr(quantize, "_write_config", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quantize_checkpoint(base, tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["tiny-llama"]
