import pytest

from training.comparison.arms import PROMPT, make_arms
from training.data.recipe import make_recipe
from training.errors import TrainingError

RECIPE = make_recipe({"rank": 2})


def test_arms() -> None:
    arms = make_arms(RECIPE, ["lora", "full"], [4, 8], ["q_proj,v_proj", "down_proj"])
    assert [arm.name for arm in arms] == [
        PROMPT,
        "lora r=4 q_proj,v_proj",
        "lora r=4 down_proj",
        "lora r=8 q_proj,v_proj",
        "lora r=8 down_proj",
        "full",
    ]
    recipe = arms[3].recipe
    assert recipe is not None
    assert (recipe.rank, recipe.targets) == (8, ("q_proj", "v_proj"))
    assert recipe.alpha / recipe.rank == RECIPE.alpha / RECIPE.rank, "the scale stays"
    with pytest.raises(TrainingError, match="--method must be one of lora, qlora, full, not ia3"):
        make_arms(RECIPE, ["ia3"], [], [])
