from dataclasses import replace

from tests.training.comparison.rows import row
from training.comparison.report import columns, table_rows
from training.comparison.results import summarise


def test_the_column_of_memory_says_where_it_is() -> None:
    lora = replace(row("lora", "lora", 91, 3200), learning_rate=0.1)
    for gpu, head, cell in ((0, "peak MiB", "3,200"), (17539, "peak GPU MiB", "17,539")):
        comparison = summarise([replace(lora, peak_gpu_memory_mib=gpu)], "exact_match", 100, 1)
        place = columns(comparison).index(head)
        assert table_rows(comparison)[0][place] == cell
