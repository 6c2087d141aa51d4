from pathlib import Path

import pytest

from adapters_registry.rollout.scores import METRICS
from training.data.datasets.catalog import DATASETS
from training.data.recipe import RECIPES_DIR, Recipe, load_recipe, make_recipe
from training.errors import TrainingError


@pytest.mark.parametrize("path", sorted(RECIPES_DIR.glob("*.toml")), ids=lambda p: p.stem)
def test_bundled_recipes_name_their_licence_their_split_and_what_to_expect(path: Path) -> None:
    recipe = load_recipe(path.stem)
    assert recipe.dataset in DATASETS
    assert recipe.dataset_licence
    assert "Held out: whole" in path.read_text()
    assert recipe.expected.keys() <= set(METRICS)
    assert max(recipe.expected.values()) > 0.5


def test_flags_win() -> None:
    assert load_recipe("smart-home", num_steps=3, rank=None).num_steps == 3
    assert make_recipe({"rank": 8, "targets": ["q_proj"], "seed": None}) == Recipe(
        rank=8, targets=("q_proj",)
    )


def test_a_recipes_rate_is_not_taken_for_a_method_of_another_kind(tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    file.write_text("learning_rate = 3e-3")
    assert load_recipe(str(file)).learning_rate == 3e-3
    assert load_recipe(str(file), method="qlora").learning_rate == 3e-3
    assert load_recipe(str(file), method="full").learning_rate == 1e-4
    assert load_recipe(str(file), method="full", learning_rate=2e-4).learning_rate == 2e-4


def test_a_date_may_be_written_in_tomls_own_way(tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    file.write_text("date = 2026-01-02")
    assert load_recipe(str(file)).date == "2026-01-02"


def test_bad_recipes(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="bundled ones: icd10-chapter, smart-home"):
        load_recipe("nope")
    file = tmp_path / "r.toml"
    file.write_text("rnak = 3")
    with pytest.raises(TrainingError, match="unknown fields: rnak"):
        load_recipe(str(file))
    file.write_text("rank = ")
    with pytest.raises(TrainingError, match="isn't valid TOML"):
        load_recipe(str(file))
    bad: list[dict[str, object]] = [
        {"rank": 0},
        {"targets": []},
        {"learning_rate": 3.0},
        {"method": "dora"},
        {"validation_share": 1},
        {"date": "tomorrow"},
        {"batch_size": 8, "accumulation": 3},
    ]
    for values in bad:
        with pytest.raises(TrainingError, match=list(values)[-1]):
            make_recipe(values)
