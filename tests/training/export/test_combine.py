import json
from pathlib import Path

import pytest
import torch

from adapters_registry.check.weights import trained_quantization
from tests.training.adapters import make_adapter, mark_trained_quantization
from training.errors import TrainingError
from training.export.combine import combine_adapters
from training.models.adapter import read_updates


def test_cat_is_the_weighted_sum(tiny_llama: Path, tmp_path: Path) -> None:
    one = make_adapter(tiny_llama, tmp_path / "one", seed=1, use_rslora=True)
    two = make_adapter(
        tiny_llama,
        tmp_path / "two",
        seed=2,
        r=2,
        target_modules=["q_proj"],
        layers_to_transform=[1],
    )
    out = tmp_path / "out"
    error = combine_adapters([one, two], [0.75, -0.5], tiny_llama, out)
    assert error < 0.01, "bfloat16 rounds to three digits"
    parts, combined = (
        [read_updates(x, tiny_llama) for x in (one, two)],
        read_updates(out, tiny_llama),
    )
    assert combined.keys() == parts[0].keys() | parts[1].keys()
    for module, update in combined.items():
        expected = sum(
            weight * part[module].delta
            for part, weight in zip(parts, (0.75, -0.5), strict=True)
            if module in part
        )
        assert torch.allclose(update.delta, expected, atol=2e-3), module  # type: ignore[arg-type]
    assert json.loads((out / "adapter_config.json").read_text())["r"] == 6
    assert sorted(f.name for f in out.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_svd_is_its_best_fit_at_a_rank(tiny_llama: Path, tmp_path: Path) -> None:
    adapters = [make_adapter(tiny_llama, tmp_path / str(seed), seed) for seed in (1, 2)]
    errors = {
        rank: combine_adapters(
            adapters, [0.5, 0.5], tiny_llama, tmp_path / f"rank{rank}", "svd", rank
        )
        for rank in (2, 4, 8)
    }
    assert errors[2] > errors[4] > 0.1 > 0.01 > errors[8]
    update = read_updates(tmp_path / "rank4", tiny_llama)["model.layers.0.self_attn.q_proj"]
    wanted = sum(
        0.5 * read_updates(a, tiny_llama)["model.layers.0.self_attn.q_proj"].delta for a in adapters
    )
    singular = torch.linalg.svdvals(wanted)
    assert float((update.delta - wanted).norm()) == pytest.approx(
        float(singular[4:].norm()), rel=0.01
    )


@pytest.mark.parametrize("method", ["ties", "dare"])
def test_pruning_methods_run_and_are_no_plain_sums(
    tiny_llama: Path, tmp_path: Path, method: str
) -> None:
    adapters = [make_adapter(tiny_llama, tmp_path / str(seed), seed) for seed in (1, 2)]
    error = combine_adapters(adapters, [1, 1], tiny_llama, tmp_path / "out", method, 8, density=0.5)
    assert 0.05 < error < 2


def test_what_cannot_be_combined(tiny_llama: Path, tmp_path: Path) -> None:
    one, two = (make_adapter(tiny_llama, tmp_path / str(seed), seed) for seed in (1, 2))
    out = tmp_path / "out"
    with pytest.raises(TrainingError, match="must be one of cat, svd, ties, dare, not linear"):
        combine_adapters([one, two], [1, 1], tiny_llama, out, "linear")
    with pytest.raises(TrainingError, match="1 weight"):
        combine_adapters([one, two], [1], tiny_llama, out)
    with pytest.raises(TrainingError, match="cat's rank"):
        combine_adapters([one, two], [1, 1], tiny_llama, out, "cat", 4)
    half = make_adapter(
        tiny_llama, tmp_path / "half", target_modules=["v_proj"], layers_to_transform=[1]
    )
    with pytest.raises(TrainingError, match="adapted in all layers of each"):
        combine_adapters([one, half], [1, 1], tiny_llama, out)
    mark_trained_quantization(two, "nf4")
    mark_trained_quantization(one, "")
    with pytest.raises(TrainingError, match="different bases"):
        combine_adapters([one, two], [1, 1], tiny_llama, out)
    mark_trained_quantization(one, "nf4")
    combine_adapters([one, two], [1, 1], tiny_llama, out)
    assert trained_quantization(out / "adapter_model.safetensors") == "nf4"


def test_adapters_with_one_chat_template_keep_it(tiny_llama: Path, tmp_path: Path) -> None:
    adapters = [make_adapter(tiny_llama, tmp_path / str(seed), seed) for seed in (1, 2)]
    for adapter in adapters:
        (adapter / "chat_template.jinja").write_text("{{ 1 }}")
    combine_adapters(adapters, [0.5, 0.5], tiny_llama, tmp_path / "out")
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ 1 }}"
    (adapters[0] / "chat_template.jinja").unlink()
    with pytest.raises(TrainingError, match="trained with different chat templates"):
        combine_adapters(adapters, [0.5, 0.5], tiny_llama, tmp_path / "other")
