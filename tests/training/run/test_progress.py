"""The lines that a run writes where there is no terminal."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from training.run.progress import LogLines


@pytest.mark.parametrize("has_validation", [True, False])
def test_without_a_terminal_there_is_a_line_now_and_then(has_validation: bool) -> None:
    out = io.StringIO()
    lines = LogLines(Console(file=out, width=20))
    args = SimpleNamespace(eval_strategy="steps" if has_validation else "no")
    lines.on_train_begin(args, SimpleNamespace(global_step=0, max_steps=80), None)
    for step in range(1, 81):
        state = SimpleNamespace(global_step=step, max_steps=80)
        lines.on_log(args, state, None, logs={"loss": 2 - step / 100})
        if has_validation and step % 10 == 0:
            lines.on_log(args, state, None, logs={"eval_loss": 1.5})
    lines.on_log(args, SimpleNamespace(global_step=80, max_steps=80), None, logs={"runtime": 1.0})
    lines.close()
    written = out.getvalue().splitlines()
    assert [line.split(":")[0] for line in written] == [
        f"step {step} of 80" for step in (1, *range(10, 81, 10))
    ]
    assert written[0].startswith("step 1 of 80: loss 1.990, ")
    assert ("validation loss 1.500" in written[-1]) == has_validation
    assert written[-1].endswith("0 min 0 s left")
