"""What is said of the data before a run, and what is held out."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from training.data.conversations import exchange
from training.data.recipe import make_recipe
from training.data.rendering import Renderer
from training.errors import DataError
from training.models.base_model import load_tokenizer
from training.run.examples import Examples, make_examples, stop_tokens

DATA = [exchange(f"question {number}", "answer") for number in range(20)]


def made(base: Path, data: list[Any], **recipe: Any) -> Examples:
    plan = make_recipe({"validation_share": 0.2, **recipe})
    return make_examples(base, data, plan, Renderer(load_tokenizer(base)))


def test_duplicates_are_counted_and_stay_on_one_side(tiny_llama: Path) -> None:
    examples = made(tiny_llama, DATA * 2)
    assert examples.num_duplicates == 20
    assert examples.notes == ["20 example(s) repeat an earlier one word for word"]
    assert len(examples.validation) == examples.num_validation == 8
    assert not {str(s) for s in examples.train} & {str(s) for s in examples.validation}


def test_special_tokens_are_said_or_refused(tiny_llama: Path) -> None:
    data = [*DATA, exchange("A?", "x <|im_end|> y")]
    (note,) = made(tiny_llama, data).notes
    assert note.startswith("1 example(s) hold special tokens in their text (assistant 1)")
    with pytest.raises(DataError, match=r"hold special tokens .* --refuse-special-tokens"):
        made(tiny_llama, data, refuse_special_tokens=True)
    assert made(tiny_llama, DATA, refuse_special_tokens=True).notes == []


def test_an_end_at_which_the_base_does_not_stop_is_said(tiny_llama: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_llama, tmp_path / "base")
    renderer = Renderer(load_tokenizer(base))
    end = renderer.tokenizer.convert_tokens_to_ids("<|im_end|>")
    other = renderer.tokenizer.convert_tokens_to_ids("<|endoftext|>")
    renderer.tokenizer.eos_token = "<|endoftext|>"
    plan = make_recipe({})
    for stops in (other, [other]):
        (base / "generation_config.json").write_text(json.dumps({"eos_token_id": stops}))
        (note,) = make_examples(base, DATA, plan, renderer).notes
        assert f"answers end with '<|im_end|>' (token {end}), at which this base" in note
    for stops in (end, [other, end]):
        (base / "generation_config.json").write_text(json.dumps({"eos_token_id": stops}))
        assert make_examples(base, DATA, plan, renderer).notes == []
    (base / "generation_config.json").unlink()
    assert stop_tokens(base) == {end}, "then config.json says it"


def test_a_template_of_ones_own_is_a_note_for_adapters(tiny_llama: Path) -> None:
    template = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    (note,) = made(tiny_llama, DATA, chat_template=template).notes
    assert "check that the server renders requests with this template" in note
    assert made(tiny_llama, DATA, chat_template=template, method="full").notes == []


def test_nothing_to_train_on(tiny_llama: Path) -> None:
    with pytest.raises(DataError, match="nothing to train on"):
        made(tiny_llama, [])
