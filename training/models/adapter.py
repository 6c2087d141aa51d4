"""Reads an adapter's updates of the base's modules from its two files. No model is loaded."""

from __future__ import annotations

import json
import math
import re
import shutil
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from adapters_registry.check.base import BaseSpec
from adapters_registry.check.peft_config import PeftConfig
from adapters_registry.check.static_check import check_adapter
from adapters_registry.content.adapter_files import ADAPTER_FILES, CONFIG_FILE, WEIGHTS_FILE
from adapters_registry.errors import AdapterRejected
from training.errors import TrainingError
from training.models.lora import MAX_RANK


@dataclass(frozen=True)
class Update:
    """An adapter's update of one weight: it adds `scale * b @ a`, in float32."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float

    @property
    def delta(self) -> torch.Tensor:
        """Return the update as a full matrix."""
        return self.scale * (self.b @ self.a)

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the update's part of the module's output."""
        a, b = self.a.to(inputs.dtype), self.b.to(inputs.dtype)
        output: torch.Tensor = self.scale * (inputs @ a.T @ b.T)
        return output


def read_updates(adapter: Path, base: Path) -> dict[str, Update]:
    """Check an adapter by the gate's rules, and return its updates by module name.

    Raises:
        TrainingError: it isn't an adapter for this base. The message has every reason.
    """
    with tempfile.TemporaryDirectory() as staged:
        for name in ADAPTER_FILES:  # only the files that a server would take
            if not (adapter / name).is_file():
                raise TrainingError(f"{adapter} isn't an adapter: it has no {name}")
            shutil.copyfile(adapter / name, Path(staged) / name)
        try:
            spec = BaseSpec.from_directory(base, MAX_RANK)
            check_adapter(Path(staged), spec, allow_base_mismatch=True)
        except AdapterRejected as rejection:
            reasons = "; ".join(reason.message for reason in rejection.reasons)
            raise TrainingError(f"{adapter} doesn't fit {base.name}: {reasons}") from None
        except ValueError as error:
            raise TrainingError(str(error)) from None
    sides: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    for key, tensor in load_file(adapter / WEIGHTS_FILE).items():
        module, side = re.fullmatch(r"(.+)\.lora_([AB])\.weight", key).groups()  # type: ignore[union-attr]
        sides[module.removeprefix("base_model.model.")][side] = tensor.float()
    config = PeftConfig(read_config(adapter))
    return {
        module: Update(pair["A"], pair["B"], config.scale_of(module))
        for module, pair in sides.items()
    }


def read_config(adapter: Path) -> dict[str, Any]:
    """Return the adapter's configuration as PEFT wrote it."""
    config: dict[str, Any] = json.loads((adapter / CONFIG_FILE).read_text(encoding="utf-8"))
    return config


def size_of(updates: list[Update]) -> float:
    """Return the Frobenius norm of a sum of updates of one module. No full matrix is made."""
    a = torch.cat([update.a for update in updates])
    b = torch.cat([update.b * update.scale for update in updates], dim=1)
    return math.sqrt(max(0.0, float(((a @ a.T) * (b.T @ b)).double().sum())))
