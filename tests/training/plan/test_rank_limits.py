"""Which limit of ranks pays for a set of adapters."""

import json
from pathlib import Path

import pytest

from tests.llama import LLAMA31_8B
from training.errors import TrainingError
from training.plan.memory import Shape
from training.plan.rank_limits import choose_limit, plan_limits, ranks_of


def write_config(folder: Path, **values: object) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(values))
    return folder


def test_each_limit_with_its_memory_and_share() -> None:
    shape = Shape.of(LLAMA31_8B)
    plans = plan_limits(shape, [8] * 6 + [16] * 3 + [64], num_slots=16)
    assert [plan.limit for plan in plans] == [1, 8, 16, 32, 64]
    assert [plan.share for plan in plans] == [0, 0.6, 0.9, 0.9, 1]
    by_limit = {plan.limit: plan for plan in plans}
    assert by_limit[16].slot_bytes == 83_886_080
    assert by_limit[64].slots_bytes == 16 * 4 * 83_886_080
    assert choose_limit(plans).limit == 16, "32 lets no more in, and 64 takes four times as much"


def test_all_must_fit_where_few_are_not_enough() -> None:
    plans = plan_limits(Shape.of(LLAMA31_8B), [8, 32], num_slots=1)
    assert choose_limit(plans).limit == 32
    over_the_engines_own = plan_limits(Shape.of(LLAMA31_8B), [8, 1024], num_slots=1)
    assert choose_limit(over_the_engines_own).limit == 512


def test_ranks_are_read_from_configurations(tmp_path: Path) -> None:
    write_config(tmp_path / "many" / "a", r=8)
    write_config(tmp_path / "many" / "b", r=4, rank_pattern={"q_proj": 32})
    one = write_config(tmp_path / "one", r=16)
    ranks = ranks_of([tmp_path / "many", one])
    assert list(ranks.values()) == [8, 32, 16]
    with pytest.raises(TrainingError, match="has no adapter"):
        ranks_of([one.parent / "many" / "a" / "none"])
    write_config(tmp_path / "bad", r="x")
    with pytest.raises(TrainingError, match="can't read the rank"):
        ranks_of([tmp_path / "bad"])
