"""Shows a run's progress: a changing line on a terminal, or a few log lines elsewhere."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback

NUM_LINES = 8
"""Number of log lines of a run, in addition to the line of the first step."""


class _Figures(TrainerCallback):  # type: ignore[misc]
    """The newest loss and validation loss."""

    def __init__(self) -> None:
        self._figures: dict[str, float] = {}

    def _take(self, logs: dict[str, float] | None) -> None:
        self._figures |= {k: v for k, v in (logs or {}).items() if k in ("loss", "eval_loss")}

    def __str__(self) -> str:
        names = {"loss": "loss", "eval_loss": "validation loss"}
        return ", ".join(f"{names[name]} {value:.3f}" for name, value in self._figures.items())


class ProgressBar(_Figures):
    """Shows one line on a terminal: steps, losses, time left."""

    def __init__(self, console: Console) -> None:
        """Prepare the line for this terminal. It appears when the run begins."""
        super().__init__()
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task("")

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._bar.update(self._task, total=state.max_steps, completed=state.global_step)
        self._bar.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._bar.update(self._task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self._take(logs)
        self._bar.update(self._task, description=str(self))

    def close(self) -> None:
        """Give the terminal back, even if training failed."""
        self._bar.stop()


class LogLines(_Figures):
    """Writes lines to a file or a pipe: step, losses, time left."""

    def __init__(self, console: Console) -> None:
        """Write the lines to this console."""
        super().__init__()
        self._console = console
        self._first_step = 0
        self._began = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._first_step, self._began = state.global_step, time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self._take(logs)
        step, last = state.global_step, state.max_steps
        every = max(1, -(-last // NUM_LINES))
        # At a look, the training loss is logged before the validation loss. One line shows both.
        is_look = "eval_loss" in (logs or {})
        is_due = args.eval_strategy == "no" and step % every == 0
        if is_look or ("loss" in (logs or {}) and (is_due or step == self._first_step + 1)):
            seconds = (time.monotonic() - self._began) / max(1, step - self._first_step)
            left = round(seconds * (last - step))
            self._console.print(
                f"step {step} of {last}: {self}, {left // 60} min {left % 60} s left",
                soft_wrap=True,
                highlight=False,
            )

    def close(self) -> None:
        """Do nothing: there is no terminal to give back."""
