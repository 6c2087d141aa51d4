"""What stands beside an adapter's weights: used, refused or mentioned, never passed over."""

import json
from pathlib import Path
from typing import Any

import pytest

from adapters_registry.check.companions.companions import check_companions
from adapters_registry.check.companions.serving_defaults import CompanionFindings, ServingDefaults

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}"
OWN = "{% for m in messages %}[INST]{{ m.content }}[/INST]{% endfor %}"
TOKENIZER = {
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]},
    "added_tokens": [
        {"id": 3, "content": "<eos>", "special": True},
        {"id": 4, "content": "<end>", "special": True},
    ],
    "truncation": None,
}
OF_BASE: dict[str, Any] = {
    "config.json": {"vocab_size": 8},
    "tokenizer.json": TOKENIZER,
    "tokenizer_config.json": {
        "chat_template": TEMPLATE,
        "eos_token": "<eos>",
        "unk_token": "<unk>",
        "model_max_length": 512,
    },
    "generation_config.json": {"eos_token_id": 3, "temperature": 0.6},
}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write(tmp_path / "base", OF_BASE)


def write(directory: Path, files: dict[str, Any]) -> Path:
    directory.mkdir()
    for name, value in files.items():
        text = value if isinstance(value, str) else json.dumps(value)
        (directory / name).write_text(text)
    return directory


def check(base: Path, files: dict[str, Any]) -> CompanionFindings:
    return check_companions(write(base.parent / "adapter", files), base)


@pytest.mark.parametrize(
    "files",
    [
        {},
        {name: value for name, value in OF_BASE.items() if name != "config.json"},
        {"chat_template.jinja": TEMPLATE + "\n"},
        {"tokenizer_config.json": {"chat_template": TEMPLATE, "padding_side": "left"}},
        {"tokenizer_config.json": {"added_tokens_decoder": {"3": {"content": "<eos>"}}}},
        {"tokenizer.json": TOKENIZER | {"truncation": {"max_length": 9}, "padding": {"to": 4}}},
        {"tokenizer.json": TOKENIZER | {"model": {**TOKENIZER["model"], "merges": ["a b"]}}},  # type: ignore[dict-item]
        {"added_tokens.json": {"<end>": 4}},
        {"special_tokens_map.json": {"eos_token": {"content": "<eos>"}, "unk_token": "<unk>"}},
        {"generation_config.json": {"eos_token_id": [3], "transformers_version": "5.0"}},
    ],
    ids=str,
)
def test_what_equals_the_bases_is_not_mentioned(base: Path, files: dict[str, Any]) -> None:
    assert check(base, files) == CompanionFindings()


@pytest.mark.parametrize(
    ("files", "shown"),
    [
        ({"added_tokens.json": {"<tool>": 8}}, "'<tool>' (8: the base has 8 tokens)"),
        ({"added_tokens.json": {"<tool>": 5}}, "'<tool>' (5)"),
        ({"added_tokens.json": {"<end>": 3}}, "'<end>' (3; the base's has 4)"),
        ({"tokenizer_config.json": {"added_tokens_decoder": {"4": {"content": "<x>"}}}}, "'<x>'"),
        ({"tokenizer_config.json": {"pad_token": "<pad>"}}, "'<pad>'"),
        ({"tokenizer_config.json": {"extra_special_tokens": {"image": "<img>"}}}, "'<img>'"),
        ({"special_tokens_map.json": {"additional_special_tokens": ["<call>"]}}, "'<call>'"),
        ({"tokenizer.json": {"added_tokens": [{"id": 4, "content": "<y>"}]}}, "'<y>' (4)"),
        ({"tokenizer.json": {"model": {"vocab": {"a": 1}}}}, "'a' (1; the base's has 0)"),
        ({"tokenizer.json": {"model": {"vocab": [["a", 0.0], ["z", 0.0]]}}}, "'z' (1)"),
    ],
    ids=str,
)
def test_tokens_that_the_base_lacks_are_refused(
    base: Path, files: dict[str, Any], shown: str
) -> None:
    (reason,) = check(base, files).reasons
    assert (reason.code, reason.key) == ("added_tokens", next(iter(files)))
    assert shown in reason.message
    assert "merge the adapter" in reason.message


def test_a_template_of_its_own_is_used(base: Path) -> None:
    found = check(
        base, {"chat_template.jinja": OWN, "tokenizer_config.json": {"chat_template": "x"}}
    )
    assert not found.reasons
    assert len(found.defaults.chat_template) == 64
    assert found.defaults.content_format == "string"
    other, used = found.warnings
    assert "another chat template than chat_template.jinja" in other
    assert "its own chat template (chat_template.jinja) is used" in used


def test_a_template_in_the_tokenizers_configuration_is_used(base: Path) -> None:
    named = [{"name": "default", "template": OWN}, {"name": "tool_use", "template": "t"}]
    found = check(base, {"tokenizer_config.json": {"chat_template": named}})
    assert found.defaults.chat_template
    assert "only the default one is used" in found.warnings[0]


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{% for m in messages %}", "endfor"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "1 s"),
    ],
)
def test_a_template_that_cant_be_used_is_refused(base: Path, template: str, why: str) -> None:
    (reason,) = check(base, {"chat_template.jinja": template}).reasons
    assert reason.code == "bad_chat_template"
    assert why in reason.message


def test_stop_tokens_and_sampling_defaults_hold(base: Path) -> None:
    generation = {"eos_token_id": [3, 4], "temperature": 0.6, "top_k": 5, "max_new_tokens": 64}
    found = check(base, {"generation_config.json": generation})
    assert found.defaults == ServingDefaults(
        stop_token_ids=[4], sampling={"top_k": 5, "max_new_tokens": 64}
    )
    assert found.warnings == [
        "its answers also end at '<end>' (4), as its files say",
        "its own defaults hold for its requests: top_k 5, max_new_tokens 64",
    ]


def test_an_end_token_of_the_tokenizer_holds(base: Path) -> None:
    found = check(base, {"tokenizer_config.json": {"eos_token": "<end>"}})
    assert found.defaults.stop_token_ids == [4]
    assert found.defaults.special_tokens == {"eos_token": "<end>"}


def test_greedy_sampling_holds(base: Path) -> None:
    found = check(base, {"generation_config.json": {"do_sample": False, "num_beams": 4}})
    assert found.defaults.sampling == {"temperature": 0.0}
    assert "generation_config.json: not used here: num_beams" in found.warnings


@pytest.mark.parametrize(
    "values",
    [
        *({"eos_token_id": value} for value in (8, -1, "3", [3, None], True, list(range(3)) * 11)),
        *({"temperature": value} for value in (-1, "warm", True, float("inf"))),
        {"top_k": 1.5},
        {"max_new_tokens": 0},
    ],
    ids=str,
)
def test_what_generation_cant_use_is_refused(base: Path, values: dict[str, Any]) -> None:
    reasons = check(base, {"generation_config.json": values}).reasons
    assert [reason.code for reason in reasons] == ["bad_generation_config"]


@pytest.mark.parametrize("text", ["[]", "{", '"x"', "[" * 100_000, " " * (2 << 20)])
def test_what_cant_be_read_is_refused(base: Path, text: str) -> None:
    (reason,) = check(base, {"generation_config.json": text}).reasons
    assert (reason.code, reason.key) == ("companion_unreadable", "generation_config.json")


def test_what_else_differs_is_mentioned(base: Path) -> None:
    found = check(
        base,
        {
            "tokenizer_config.json": {"model_max_length": 256, "add_bos_token": True},
            "tokenizer.json": TOKENIZER | {"normalizer": {"type": "Lowercase"}},
        },
    )
    assert found.warnings == [
        "tokenizer_config.json differs from the base's, which is used, in add_bos_token, "
        "model_max_length",
        "tokenizer.json differs from the base's, which is used, in normalizer",
    ]


@pytest.mark.parametrize("is_named", [False, True])
def test_a_tokenizer_that_isnt_read_is_mentioned(base: Path, is_named: bool) -> None:
    (base / "vocab.json").write_text("{}")
    files = {"tokenizer.model": "pieces", "merges.txt": "a b", "vocab.json": "{}"}
    if is_named:  # in the form that is compared, which says the same
        files |= {"tokenizer.json": json.dumps(TOKENIZER)}
    found = check(base, files)
    assert not found.reasons
    if is_named:
        assert not found.warnings
    else:
        (warning,) = found.warnings
        assert warning.startswith(
            "tokenizer.model and merges.txt aren't the base's and aren't read"
        )
