from pathlib import Path

import pytest

from training.datasets import DATASETS
from training.errors import TrainingError
from training.recipe import RECIPES_DIR, Recipe, load_recipe, make_recipe


@pytest.mark.parametrize("path", sorted(RECIPES_DIR.glob("*.toml")), ids=lambda p: p.stem)
def test_bundled_recipes_load_and_name_their_licence(path: Path) -> None:
    recipe = load_recipe(path.stem)
    assert recipe.dataset in DATASETS
    assert recipe.dataset_licence


def test_flags_win() -> None:
    assert load_recipe("smart-home", num_steps=3, rank=None).num_steps == 3
    assert make_recipe({"rank": 8, "targets": ["q_proj"], "seed": None}) == Recipe(
        rank=8, targets=("q_proj",)
    )


def test_bad_recipes(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="bundled ones: icd10-chapter, smart-home"):
        load_recipe("nope")
    file = tmp_path / "r.toml"
    file.write_text("rnak = 3")
    with pytest.raises(TrainingError, match="unknown fields: rnak"):
        load_recipe(str(file))
    file.write_text("rank = ")
    with pytest.raises(TrainingError, match="no valid TOML"):
        load_recipe(str(file))
    for values in ({"rank": 0}, {"targets": []}, {"learning_rate": 3.0}):
        with pytest.raises(TrainingError, match=next(iter(values))):
            make_recipe(values)
