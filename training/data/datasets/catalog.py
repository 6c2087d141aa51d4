"""The data sets by name.

Each depends only on its size and seed. It holds out whole groups (sentence templates, diagnosis
categories, streets, threads of mail), so the test split asks only for groups that training has not
seen.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from training.data.datasets.icd10_chapter import icd10_chapter
from training.data.datasets.smart_home import smart_home
from training.data.datasets.spam_assassin import spam_assassin
from training.data.datasets.split import Split
from training.data.datasets.us_addresses import us_addresses
from training.errors import TrainingError

DATASETS: dict[str, Callable[[int, random.Random], Split]] = {
    "smart-home": smart_home,
    "icd10-chapter": icd10_chapter,
    "us-addresses": us_addresses,
    "spam-assassin": spam_assassin,
}


def load_dataset(name: str, *, size: int, seed: int) -> Split:
    """Make a data set of about `size` training examples.

    Raises:
        TrainingError: there is no such data set, or its package is missing.
    """
    if name not in DATASETS:
        raise TrainingError(f"no data set {name!r}; there are: {', '.join(sorted(DATASETS))}")
    try:
        return DATASETS[name](size, random.Random(seed))
    except ModuleNotFoundError as error:
        raise TrainingError(
            f"data set {name!r} needs the package {error.name!r}: "
            "pip install --no-deps -r requirements/dev.txt"
        ) from error
