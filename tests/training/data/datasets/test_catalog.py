import pytest

from training.data.datasets.catalog import load_dataset
from training.errors import TrainingError


@pytest.mark.parametrize("name", ["smart-home", "icd10-chapter"])
def test_deterministic_and_held_out(name: str) -> None:
    first, again = (load_dataset(name, size=300, seed=1) for _ in range(2))
    assert first == again
    assert first != load_dataset(name, size=300, seed=2)
    assert len(first.train) == 300
    assert len(first.test) >= 100


def test_unknown_dataset() -> None:
    with pytest.raises(TrainingError, match="there are: icd10-chapter, smart-home"):
        load_dataset("nope", size=1, seed=1)
