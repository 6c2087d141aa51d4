"""Records a run's settings and results beside its output: `training_run.json` and a plot."""

from __future__ import annotations

import hashlib
import json
import resource
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from training.data.conversations import Conversation
from training.data.recipe import Recipe
from training.models.device import chosen_device, device_name, gpu_peak_mib

RECORD_FILE = "training_run.json"
PLOT_FILE = "training_run.png"
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes")


@dataclass
class RunRecord:
    """One training run. Times are in seconds, memory in MiB."""

    recipe: dict[str, Any]
    base: str
    base_sha256: str
    base_quantization: str
    """The base's quantization in training. Empty if it wasn't rounded."""
    num_examples: int
    num_validation: int
    data_sha256: str
    versions: dict[str, str]
    num_duplicates: int = 0
    """Number of examples that repeat an earlier one word for word."""
    notes: list[str] = field(default_factory=list)
    """Notes about the data from before the run, one line each."""
    device: str = ""
    """The GPU's name, or `cpu`."""
    num_trainable: int = 0
    num_steps_run: int = 0
    best_step: int = 0
    """The step whose weights were kept: that with the least validation loss, or the last."""
    train_seconds: float = 0
    """Time of all steps. For a resumed run it is estimated from the speed of the last part."""
    peak_memory_mib: int = 0
    """Peak host memory of the process since its start: imports, loading and training."""
    peak_gpu_memory_mib: int = 0
    """Peak of the tensors on the GPU while loading and training, 0 if there is no GPU."""
    peak_gpu_reserved_mib: int = 0
    """Peak of the GPU memory that PyTorch reserved. The driver takes some more."""
    loss: list[tuple[int, float]] = field(default_factory=list)
    validation_loss: list[tuple[int, float]] = field(default_factory=list)
    evaluation: dict[str, Any] = field(default_factory=dict)
    """The scores of the base and of the trained model on the held-out examples."""

    @property
    def peak_mib(self) -> int:
        """Return the peak of the GPU's memory if there was one, otherwise of the process."""
        return self.peak_gpu_memory_mib or self.peak_memory_mib

    def follow(self, log: list[dict[str, float]]) -> None:
        """Record the trainer's log, and measure the peaks of memory."""
        self.loss = [(int(row["step"]), row["loss"]) for row in log if "loss" in row]
        self.validation_loss = [
            (int(row["step"]), row["eval_loss"]) for row in log if "eval_loss" in row
        ]
        self.num_steps_run = self.loss[-1][0] if self.loss else 0
        best = min(self.validation_loss, key=lambda look: look[1], default=(self.num_steps_run, 0))
        self.best_step = best[0]
        self.peak_memory_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        self.peak_gpu_memory_mib, self.peak_gpu_reserved_mib = gpu_peak_mib(chosen_device())

    def write_json(self, directory: Path) -> None:
        """Write only the record."""
        text = json.dumps(asdict(self), indent=1)
        (directory / RECORD_FILE).write_text(text + "\n", encoding="utf-8")

    def write(self, directory: Path) -> None:
        """Write the record and the plot of its losses."""
        self.write_json(directory)
        plot_losses(self, directory / PLOT_FILE)

    def same_job(self, other: dict[str, Any]) -> bool:
        """Return whether a stored record has the same base, data and recipe as this one."""
        mine = json.loads(json.dumps(asdict(self)))
        keys = ("recipe", "base_sha256", "data_sha256")
        return all(mine[key] == other.get(key) for key in keys)


def begin_record(
    recipe: Recipe,
    base: str,
    base_sha256: str,
    base_quantization: str,
    examples: Sequence[Conversation],
    num_validation: int,
) -> RunRecord:
    """Return the record of a run that begins on the chosen device."""
    data = json.dumps([example.record for example in examples], sort_keys=True).encode()
    return RunRecord(
        recipe=asdict(recipe),
        base=base,
        base_sha256=base_sha256,
        base_quantization=base_quantization,
        num_examples=len(examples),
        num_validation=num_validation,
        data_sha256=hashlib.sha256(data).hexdigest(),
        versions={name: version(name) for name in PACKAGES},
        device=device_name(chosen_device()),
    )


def plot_losses(record: RunRecord, file: Path) -> None:
    """Draw the loss of each step, and the validation loss, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(*zip(*record.loss, strict=True), label="training", alpha=0.6)
    if record.validation_loss:
        axes.plot(*zip(*record.validation_loss, strict=True), "o-", label="validation")
        axes.axvline(record.best_step, color="grey", linestyle=":", label="kept")
    axes.set(xlabel="step", ylabel="loss (nats a token)", yscale="log")
    axes.set_title(f"{record.recipe['method']} on {record.base}")
    axes.legend()
    figure.savefig(file, dpi=110)
