"""Rows of a comparison, made up."""

from adapters_registry.rollout.scores import Scores
from training.comparison.results import Row


def row(name: str, method: str, hits: int, memory: int = 0, gpu: int = 0) -> Row:
    """Return a row with `hits` right answers of a hundred, and these peaks of memory in MiB."""
    values = {
        "exact_match": [float(i < hits) for i in range(100)],
        "rouge_l": [1.0] * 100,
        "loss": [1.0] * 100,
    }
    scores = Scores(values, [1] * 100)
    return Row(
        name,
        method,
        None if not method else 0.1,
        [scores],
        peak_memory_mib=memory,
        peak_gpu_memory_mib=gpu,
    )
