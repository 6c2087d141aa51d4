"""Runs one trial of a comparison: `python -m training.comparison.trial DIRECTORY`.

A trial trains and scores in a process of its own, so its peak memory can be measured. A trial that
was killed continues from its last checkpoint. `trial.json` describes it, `result.json` holds the
result.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adapters_registry.content.adapter_files import CONFIG_FILE
from adapters_registry.rollout.scores import Scores
from training.data.reading import read_conversations
from training.data.recipe import make_recipe
from training.data.rendering import DEFAULT_DATE
from training.errors import TrainingError
from training.evaluation.candidates import LocalModel
from training.evaluation.evaluate import evaluate
from training.run.record import RECORD_FILE
from training.run.train import checkpoints_of, train

TRIAL_FILE = "trial.json"
RESULT_FILE = "result.json"
MODEL = "model"


@dataclass(frozen=True)
class Result:
    """The result of a trial."""

    scores: Scores
    record: dict[str, Any]
    """The record of the training run. It is empty if nothing was trained."""
    artefact_bytes: int

    @property
    def seconds_per_step(self) -> float:
        """Return how long a training step took, without loading and scoring."""
        return float(self.record["train_seconds"]) / max(1, int(self.record["num_steps_run"]))


def run_trial(
    directory: Path, base: Path, recipe: dict[str, Any], train_on: Path, score_on: Path
) -> Result:
    """Train by a recipe and score on a file. If this was done before, return that result.

    With an empty recipe the untrained base is scored. If the directory holds another trial, that
    one is deleted.

    Raises:
        TrainingError: the trial can't be run. The message says why.
    """
    job = _job(base, recipe, train_on, score_on)
    if (directory / TRIAL_FILE).is_file() and (directory / TRIAL_FILE).read_text() != job:
        shutil.rmtree(directory)
    if not (directory / RESULT_FILE).is_file():
        directory.mkdir(parents=True, exist_ok=True)
        (directory / TRIAL_FILE).write_text(job)
        command = [sys.executable, "-m", "training.comparison.trial", str(directory)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise TrainingError(f"{directory.name}: {done.stderr.strip()[-2000:]}")
    found = json.loads((directory / RESULT_FILE).read_text())
    scores = Scores(found["scores"]["values"], found["scores"]["num_tokens"])
    return Result(scores, found["record"], found["artefact_bytes"])


def _job(base: Path, recipe: dict[str, Any], train_on: Path, score_on: Path) -> str:
    """Return everything that the result depends on, as JSON. A base is identified by its path."""
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in (train_on, score_on)]
    job = {
        "base": str(base),
        "recipe": recipe,
        "train": str(train_on),
        "score": str(score_on),
        "data_sha256": digests,
    }
    return json.dumps(job, indent=1) + "\n"


def carry_out(directory: Path) -> None:
    """Run the trial in `trial.json` and write `result.json`. A full model's weights are deleted."""
    job = json.loads((directory / TRIAL_FILE).read_text())
    base, model = Path(job["base"]), directory / MODEL
    record: dict[str, Any] = {}
    size = 0
    candidate = None
    if job["recipe"]:
        recipe = make_recipe(job["recipe"])
        if not model.is_dir():
            resume = (checkpoints_of(model) / RECORD_FILE).is_file()
            train(base, read_conversations(Path(job["train"])), recipe, model, resume=resume)
        record = json.loads((model / RECORD_FILE).read_text())
        size = sum(file.stat().st_size for file in model.glob("*.safetensors"))
        candidate = LocalModel(base, model) if recipe.has_adapter else LocalModel(model)
    template = job["recipe"].get("chat_template", "")
    candidate = candidate or LocalModel(base, chat_template=template)
    date = job["recipe"].get("date", DEFAULT_DATE)
    scores = evaluate(candidate, base, read_conversations(Path(job["score"])), date)
    if model.is_dir() and not (model / CONFIG_FILE).is_file():
        for file in model.glob("*.safetensors"):
            file.unlink()
    result = {"scores": asdict(scores), "record": record, "artefact_bytes": size}
    scratch = directory / f"{RESULT_FILE}.part"
    scratch.write_text(json.dumps(result) + "\n")
    scratch.rename(directory / RESULT_FILE)


if __name__ == "__main__":
    try:
        carry_out(Path(sys.argv[1]))
    except TrainingError as error:
        sys.exit(str(error))
