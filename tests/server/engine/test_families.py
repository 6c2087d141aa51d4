"""The table of families against the models of Transformers and vLLM."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from vllm.model_executor.models import ModelRegistry, supports_lora
from vllm.model_executor.models.transformers import TransformersForCausalLM
from vllm.reasoning import ReasoningParserManager
from vllm.tool_parsers import ToolParserManager

from adapters_registry.check.base import BaseSpec
from adapters_registry.families import FAMILIES, FUSED, Family, ModuleShape
from tests.tiny_families import OF_ARCHITECTURE, tiny_config

DOCUMENT = Path(__file__).parents[3] / "docs" / "bases.md"

each_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.architecture)


def linear_modules(config: Any) -> dict[str, ModuleShape]:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return {
        name: ModuleShape(module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }


def test_every_family_has_a_tiny_model() -> None:
    assert {family.architecture for family in FAMILIES} == OF_ARCHITECTURE.keys()


@each_family
def test_modules_are_those_of_transformers(family: Family) -> None:
    config = tiny_config(family.architecture)
    spec = BaseSpec.from_config("tiny", config.to_dict(), max_rank=8)
    assert spec.modules == linear_modules(config)
    assert {name.rsplit(".", 1)[1] for name in spec.modules} == set(family.targets)


@each_family
def test_sizes_that_a_configuration_leaves_out(family: Family) -> None:
    config = tiny_config(
        family.architecture,
        hidden_size=512,
        num_attention_heads=32,
        num_key_value_heads=None,
        head_dim=None,
        tie_word_embeddings=None,
    )
    written = config.to_dict()
    for name in ("head_dim", "num_key_value_heads", "tie_word_embeddings"):
        written.pop(name, None)
    assert BaseSpec.from_config("tiny", written, max_rank=8).modules == linear_modules(config)
    assert family.has_tied_head(written) == config.tie_word_embeddings


@each_family
def test_vllm_serves_adapters_on_it_under_these_names(family: Family) -> None:
    model = ModelRegistry.models[family.architecture].load_model_cls()
    assert supports_lora(model)
    if issubclass(model, TransformersForCausalLM):
        return  # what it fuses is only known once a model is loaded: `make bases`
    expected = {
        whole: [whole] if family.is_fused else list(parts) for whole, parts in FUSED.items()
    }
    assert model.packed_modules_mapping == expected


@each_family
def test_the_documents_say_what_the_table_says(family: Family) -> None:
    rows = DOCUMENT.read_text().splitlines()
    (row,) = [row for row in rows if row.startswith(f"| {family.name} | `")]
    named = set(re.findall("`([^`]+)`", row.replace("\\|", "|")))
    marks = (*family.tool_parsers, *family.reasoning_parsers)
    parsers = {family.tool_parser, *(parser for _, parser in marks)}
    tokens = {mark for mark, _ in family.tool_parsers}
    assert named == {family.architecture} | parsers | tokens
    assert ("fused" in row) == family.is_fused


@each_family
def test_its_parsers_are_vllms(family: Family) -> None:
    tools = {family.tool_parser, *(parser for _, parser in family.tool_parsers)}
    reasoning = {parser for _, parser in family.reasoning_parsers}
    assert tools <= set(ToolParserManager.list_registered())
    assert reasoning <= set(ReasoningParserManager.list_registered())
