from typing import Any

from adapters_registry.rollout.scores import Scores
from tests.training.comparison.rows import row
from training.comparison.results import make_row, seconds_to_target
from training.comparison.trial import Result


def test_time_to_a_target() -> None:
    line = row("lora", "lora", 1)
    line.validation = [[10.0, 0.9], [20.0, 0.5], [30.0, 0.4]]
    assert seconds_to_target(line, 0.5) == 20
    assert seconds_to_target(line, 0.1) is None


def result(gpu: int, **record: Any) -> Result:
    facts = {
        "train_seconds": 10.0,
        "num_steps_run": 5,
        "num_trainable": 7,
        "validation_loss": [[5, 0.5]],
        "peak_memory_mib": 300,
        "peak_gpu_memory_mib": gpu,
        **record,
    }
    return Result(Scores({"loss": [1.0]}, [1]), facts, 9)


def test_a_rows_peak_is_where_training_ran() -> None:
    on_gpu = make_row("lora", "lora", 1e-3, [result(1000), result(3000)])
    assert (on_gpu.peak_mib, on_gpu.peak_memory_mib) == (2000, 300)
    on_cpu = make_row("lora", "lora", 1e-3, [result(0)])
    assert on_cpu.peak_mib == 300
    assert on_cpu.validation == [[10.0, 0.5]]
    older = result(0)
    del older.record["peak_gpu_memory_mib"]  # a trial of an earlier version, taken up again
    assert make_row("lora", "lora", 1e-3, [older]).peak_mib == 300
