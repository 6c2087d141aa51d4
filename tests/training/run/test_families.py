"""Every family of bases is trained, passes the gate, and is merged: tiny ones of random weights."""

import shutil
from pathlib import Path

import pytest

from adapters_registry.check.base import BaseSpec
from adapters_registry.check.static_check import check_adapter
from adapters_registry.content.adapter_files import ADAPTER_FILES
from adapters_registry.families import FAMILIES, Family
from tests.real_engine.families import FORMATS
from tests.tiny_families import write_tiny_base
from training.data.conversations import exchange
from training.data.recipe import make_recipe
from training.errors import TrainingError
from training.export.merge import merge_adapter
from training.quantization.w4a16 import quantize_checkpoint
from training.run.train import train

DATA = [exchange(f"ping {n}", "pong") for n in range(4)]


def tiny(directory: Path, family: Family) -> Path:
    form = FORMATS[family.architecture]
    return write_tiny_base(directory, family.architecture, form.special_tokens, form.template)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.architecture)
def test_a_family_is_trained_checked_and_merged(family: Family, tmp_path: Path) -> None:
    base, out, staged = tiny(tmp_path / "base", family), tmp_path / "adapter", tmp_path / "staged"
    plan = make_recipe(
        {"rank": 2, "num_steps": 4, "batch_size": 4, "validation_share": 0, "learning_rate": 1e-2}
    )
    record = train(base, DATA, plan, out)
    assert record.loss[-1][1] < record.loss[0][1]
    staged.mkdir()
    for name in ADAPTER_FILES:
        shutil.copy(out / name, staged)
    facts = check_adapter(staged, BaseSpec.from_directory(base, max_rank=8))
    assert facts.target_modules == sorted(family.targets)
    parity = merge_adapter(out, base, tmp_path / "merged", dtype="float32")
    assert parity.max_difference < 1e-4


def test_4_bit_weights_are_made_of_llamas_only(tmp_path: Path) -> None:
    base = tiny(tmp_path / "base", FAMILIES[1])
    with pytest.raises(TrainingError, match=r"of Llama bases only, and .* is Mistral"):
        quantize_checkpoint(base, tmp_path / "out")
