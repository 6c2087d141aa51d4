"""Real training: of a tiny random Llama, and once of the bundled base; and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from adapters_registry.check.base import BaseSpec
from adapters_registry.check.static_check import check_adapter
from adapters_registry.check.weights import trained_quantization
from adapters_registry.content.adapter_files import ADAPTER_FILES
from server.bundled_base import ensure_bundled_base
from training.data.conversations import exchange
from training.data.recipe import Recipe, make_recipe
from training.errors import DataError, TrainingError
from training.evaluation.candidates import LocalModel
from training.evaluation.evaluate import evaluate
from training.models.base_model import load_tokenizer
from training.run import trainer
from training.run.train import checkpoints_of, train

DATA = [
    exchange(f"{word} {n}", answer)
    for n in range(4)
    for word, answer in (("ping", "pong"), ("tick", "tock"))
]


def recipe(**changes: Any) -> Recipe:
    values = {"rank": 2, "num_steps": 8, "batch_size": 4, "validation_share": 0.25, "patience": 0}
    return make_recipe({**values, **changes})


def files_of(directory: Path) -> list[str]:
    return sorted(file.name for file in directory.iterdir())


def exact_match(base: Path, adapter: Path | None = None) -> float:
    return evaluate(LocalModel(base, adapter), base, DATA[:2]).mean("exact_match")


def test_training_learns_and_its_adapter_passes_the_gate(tmp_path: Path) -> None:
    base, out = ensure_bundled_base(), tmp_path / "adapter"
    plan = recipe(rank=4, num_steps=12, learning_rate=5e-3, num_last_layers=6, validation_share=0)
    record = train(base, DATA, plan, out)
    assert files_of(out) == [*ADAPTER_FILES, "training_run.json", "training_run.png"]
    staged = tmp_path / "staged"
    staged.mkdir()
    for name in ADAPTER_FILES:
        shutil.copy(out / name, staged)
    facts = check_adapter(staged, BaseSpec.from_directory(base, max_rank=16))
    assert (facts.rank, facts.num_layers, facts.base_model) == (4, 6, base.name)
    assert record.loss[-1][1] < record.loss[0][1] / 4
    assert exact_match(base) == 0
    assert exact_match(base, out) == 1


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_each_method_learns_and_is_recorded(tiny_llama: Path, tmp_path: Path, method: str) -> None:
    out = tmp_path / method
    record = train(tiny_llama, DATA, recipe(method=method, learning_rate=1e-2), out)
    assert record.loss[-1][1] < record.loss[0][1]
    written = json.loads((out / "training_run.json").read_text())
    assert written["num_examples"] == 8
    assert written["num_validation"] == 2
    assert [step for step, _ in written["loss"]] == list(range(1, 9))
    assert [step for step, _ in written["validation_loss"]] == list(range(1, 9))
    assert written["base_quantization"] == ("nf4" if method == "qlora" else "")
    assert (out / "training_run.png").read_bytes().startswith(b"\x89PNG")
    assert not checkpoints_of(out).exists()
    if method == "full":
        model = AutoModelForCausalLM.from_pretrained(out)
        assert model.dtype == torch.bfloat16
        assert load_tokenizer(out).chat_template == load_tokenizer(tiny_llama).chat_template
    else:
        assert (
            trained_quantization(out / "adapter_model.safetensors") == written["base_quantization"]
        )


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_killed_run_resumes_to_the_same_curve_and_weights(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    plan = recipe(method=method, num_steps=9, learning_rate=5e-3)
    whole = train(tiny_llama, DATA, plan, tmp_path / "whole")

    step = trainer._AnswerTrainer.training_step

    def killed(self: Any, *arguments: Any, **options: Any) -> Any:
        if self.state.global_step == 5:
            raise KeyboardInterrupt
        return step(self, *arguments, **options)

    monkeypatch.setattr(trainer._AnswerTrainer, "training_step", killed)
    out = tmp_path / "resumed"
    with pytest.raises(KeyboardInterrupt):
        train(tiny_llama, DATA, plan, out)
    assert not out.exists()
    monkeypatch.setattr(trainer._AnswerTrainer, "training_step", step)
    with pytest.raises(TrainingError, match="continue it with --resume"):
        train(tiny_llama, DATA, plan, out)
    with pytest.raises(TrainingError, match="another job"):
        train(tiny_llama, DATA, recipe(method=method, seed=7), out, resume=True)
    resumed = train(tiny_llama, DATA, plan, out, resume=True)
    assert resumed.loss == whole.loss
    assert resumed.validation_loss == whole.validation_loss
    for file in (tmp_path / "whole").glob("*.safetensors"):
        tensors, others = load_file(file), load_file(out / file.name)
        assert all(torch.equal(tensors[name], others[name]) for name in tensors)
    with pytest.raises(TrainingError, match="nothing to resume"):
        train(tiny_llama, DATA, plan, tmp_path / "other", resume=True)


def test_memory_savers_change_nothing_but_rounding(tiny_llama: Path, tmp_path: Path) -> None:
    plain = train(tiny_llama, DATA, recipe(), tmp_path / "plain")
    saving = recipe(accumulation=2, gradient_checkpointing=True)
    saved = train(tiny_llama, DATA, saving, tmp_path / "saved")
    for (_, one), (_, other) in zip(plain.loss, saved.loss, strict=True):
        assert one == pytest.approx(other, rel=0.01)


def test_it_stops_early_and_keeps_the_best(tiny_llama: Path, tmp_path: Path) -> None:
    # Contradicting answers: what is learned of the training part is wrong for the other.
    data = [
        exchange(f"ping {number}", word)
        for number, word in enumerate(["seven", "red", "under", "lamp", "go", "why", "cold", "ten"])
    ]
    plan = recipe(num_steps=64, patience=2, learning_rate=0.2)
    record = train(tiny_llama, data, plan, tmp_path / "adapter")
    assert record.num_steps_run < 64
    assert record.best_step < record.num_steps_run
    assert dict(record.validation_loss)[record.best_step] == min(
        loss for _, loss in record.validation_loss
    )


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = trainer.answer_loss

    def astray(model: Any, batch: Any) -> Any:
        total, count = real(model, batch)
        steps = list(tmp_path.glob("*.checkpoints/checkpoint-*"))
        return total * (torch.inf if len(steps) == 2 and model.training else 1), count

    monkeypatch.setattr(trainer, "answer_loss", astray)
    out = tmp_path / "adapter"
    with pytest.raises(TrainingError, match=r"at step 3 .* last good checkpoint is .*checkpoint-2"):
        train(tiny_llama, DATA, recipe(), out)
    assert not out.exists()
    kept = load_file(checkpoints_of(out) / "checkpoint-2" / "adapter_model.safetensors")
    assert all(tensor.isfinite().all() for tensor in kept.values())


def test_a_single_step_learns_something(tiny_llama: Path, tmp_path: Path) -> None:
    train(tiny_llama, DATA, recipe(num_steps=1, validation_share=0), tmp_path / "adapter")
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert all(tensor.any() for name, tensor in weights.items() if "lora_B" in name)


def test_last_layers_only(tiny_llama: Path, tmp_path: Path) -> None:
    plan = recipe(num_steps=1, num_last_layers=1, targets=["q_proj"])
    train(tiny_llama, DATA, plan, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["layers_to_transform"] == [1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": ["w_pack"]}, "targets don't fit"),
        ({"targets": ["q_porj"]}, "did you mean q_proj"),
        ({"targets": ["lm_head"]}, "targets don't fit"),
        ({"init": "pissa"}, "couldn't be served: init_lora_weights"),
        ({"peft": {"use_dora": True}}, "DoRA can't be served"),
        ({"peft": {"modules_to_save": ["lm_head"]}}, "fully trained modules"),
        ({"peft": {"lora_droput": 0.1}}, "PEFT refuses this configuration"),
        ({"rank": 1024}, "over vLLM's limit of 512"),
        ({"max_length": 8}, "8 example.s. are longer .* number 1, 2, 3"),
    ],
)
def test_what_cannot_be_trained_or_served_is_refused_before_training(
    tiny_llama: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        train(tiny_llama, DATA, recipe(**changes), tmp_path / "adapter")
    assert not list(tmp_path.iterdir()), "the next try isn't taken for this one's resumption"


def test_paths_that_cannot_be_used(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="nowhere isn't a model directory"):
        train(tmp_path / "nowhere", DATA, recipe(), tmp_path / "adapter")
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match="isn't empty"):
        train(tiny_llama, DATA, recipe(), tmp_path)
    with pytest.raises(DataError, match="too few"):
        train(tiny_llama, DATA[:1], recipe(), tmp_path / "adapter")
