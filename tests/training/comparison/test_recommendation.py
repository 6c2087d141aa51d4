import json

from tests.training.comparison.rows import row
from training.comparison.arms import PROMPT
from training.comparison.recommendation import recommendation, to_json
from training.comparison.results import Row, summarise


def verdict(*rows: Row) -> str:
    return recommendation(summarise(list(rows), "exact_match", 100, 1))


def test_the_recommendation_is_the_least_effort_that_is_as_good() -> None:
    prompt, full = row(PROMPT, "", 10), row("full", "full", 92, 4100)
    assert verdict(prompt, row("lora", "lora", 91, 1000), full) == (
        "stay with lora: full is 1.0 ± 1.5 points better in exact_match, not significant, "
        "at 4.1 × the memory"
    )
    assert verdict(prompt, row("lora", "lora", 70, 1000), full).startswith("take full")
    assert verdict(row(PROMPT, "", 92), full).startswith("stay with prompt") or verdict(
        row(PROMPT, "", 92), full
    ).startswith("take prompt")
    assert verdict(row("qlora", "qlora", 92), row("lora", "lora", 91)).startswith("stay with lora")


def test_memory_is_compared_where_training_ran() -> None:
    lora, full = row("lora", "lora", 91, 3200, gpu=1000), row("full", "full", 92, 3300, gpu=5000)
    assert verdict(lora, full).endswith("at 5.0 × the memory")
    rows = json.loads(to_json(summarise([lora, full], "exact_match", 100, 1)))["rows"]
    assert [r["peak_gpu_memory_mib"] for r in rows] == [1000, 5000]
    assert [r["peak_memory_mib"] for r in rows] == [3200, 3300]
