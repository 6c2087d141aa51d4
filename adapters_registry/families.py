"""The families of models that can be a base, in one table.

For each family the table says which layers adapters may change and how tool calls and reasoning are
written. `tests/server/engine/test_families.py` compares it with vLLM's and Transformers' models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ModuleShape:
    """The number of input and output features of one linear layer or embedding."""

    in_features: int
    out_features: int


Marks = tuple[tuple[str, str], ...]
"""Pairs of a text to look for, and the parser of vLLM's to use if it is there."""

_THINKS = (("</think>", "deepseek_r1"),)


@dataclass(frozen=True)
class Family:
    """Models of one architecture. All are dense decoders that read and write text only."""

    name: str
    architecture: str
    """What `architectures` in the base's `config.json` says."""
    is_fused: bool = False
    """Whether query, key and value are one layer, and gate and up are one."""
    head_dim: int | None = None
    """Holds if `config.json` doesn't say it; None stands for the hidden size over the heads."""
    key_value_heads: int | None = None
    """Holds if `config.json` doesn't say it; None stands for as many as there are heads."""
    is_tied: bool = False
    """Whether embedding and head are one table. Holds if `config.json` doesn't say it."""
    tool_parsers: Marks = ()
    """By a token of the tokenizer: the first that it has decides."""
    tool_parser: str = "hermes"
    """The parser of tool calls if the tokenizer has none of those tokens."""
    reasoning_parsers: Marks = _THINKS
    """By a part of the chat template. If there is none of these, no answer is split."""
    engine_options: tuple[tuple[str, str], ...] = ()
    """More arguments of vLLM's that this family needs."""

    def has_tied_head(self, config: dict[str, Any]) -> bool:
        """Return whether embedding and head of the model with this configuration are one table."""
        return bool(config.get("tie_word_embeddings", self.is_tied))

    @property
    def targets(self) -> tuple[str, ...]:
        """Return the last names of the layers that adapters may change."""
        return FUSED_TARGETS if self.is_fused else TARGETS

    def own_names(self, targets: Sequence[str]) -> tuple[str, ...]:
        """Return targets in this family's names: where it has layers fused, all parts are one."""
        names = list(targets)
        for whole, parts in FUSED.items() if self.is_fused else ():
            if set(parts) <= set(names):
                names[names.index(parts[0])] = whole
                names = [name for name in names if name not in parts]
        return tuple(names)


TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FUSED_TARGETS = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""Layers that some families have in one piece, and what they consist of, in this order."""

LLAMA = Family(
    "Llama 3",
    "LlamaForCausalLM",
    tool_parsers=(("<|python_tag|>", "llama3_json"),),
)
FAMILIES = (
    LLAMA,
    Family(
        "Mistral",
        "MistralForCausalLM",
        key_value_heads=8,
        tool_parsers=(("[TOOL_CALLS]", "mistral"),),
        # Mistral's repositories have a second copy of everything in a format of their own, which
        # vLLM would prefer. The gate reads the copy in the usual format.
        engine_options=(("tokenizer-mode", "hf"), ("config-format", "hf"), ("load-format", "hf")),
    ),
    Family("Qwen 2.5", "Qwen2ForCausalLM"),
    Family(
        "Qwen 3",
        "Qwen3ForCausalLM",
        head_dim=128,
        reasoning_parsers=(("</think>", "qwen3"),),
    ),
    Family(
        "Gemma 3 (text)",
        "Gemma3ForCausalLM",
        head_dim=256,
        key_value_heads=4,
        is_tied=True,
        tool_parsers=(("<start_function_call>", "functiongemma"),),
        tool_parser="pythonic",
    ),
    Family(
        "Phi 3 and 4",
        "Phi3ForCausalLM",
        is_fused=True,
        tool_parsers=(("<|tool_call|>", "phi4_mini_json"),),
    ),
    Family(
        "Granite 3",
        "GraniteForCausalLM",
        tool_parsers=(("<|tool_call|>", "granite"), ("</tool_call>", "granite4")),
        tool_parser="granite",
        reasoning_parsers=(("my thought process:", "granite"),),
    ),
    Family("OLMo 2", "Olmo2ForCausalLM"),
    # Its template lets a system message switch thinking off, which no parser would see.
    Family("SmolLM3", "SmolLM3ForCausalLM", key_value_heads=4, is_tied=True, reasoning_parsers=()),
)
_BY_ARCHITECTURE = {family.architecture: family for family in FAMILIES}


@dataclass(frozen=True)
class LayerSizes:
    """The sizes of a decoder's layers, which are all alike."""

    num_layers: int
    hidden: int
    mlp: int
    query: int
    """Width of all query heads together."""
    key_value: int
    """Width of all key heads together, and of all value heads."""

    @classmethod
    def of(cls, family: Family, config: dict[str, Any]) -> LayerSizes:
        """Read a Hugging Face configuration.

        Raises:
            KeyError, TypeError: it lacks a size.
        """
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        head_dim = config.get("head_dim") or family.head_dim or hidden // heads
        key_value_heads = config.get("num_key_value_heads") or heads
        if "num_key_value_heads" not in config and family.key_value_heads:
            key_value_heads = family.key_value_heads
        return cls(
            num_layers=config["num_hidden_layers"],
            hidden=hidden,
            mlp=config["intermediate_size"],
            query=heads * head_dim,
            key_value=key_value_heads * head_dim,
        )

    def modules(self, *, is_fused: bool) -> dict[str, ModuleShape]:
        """Return the linear modules of one layer by their names in it."""
        if is_fused:
            return {
                "self_attn.qkv_proj": ModuleShape(self.hidden, self.query + 2 * self.key_value),
                "self_attn.o_proj": ModuleShape(self.query, self.hidden),
                "mlp.gate_up_proj": ModuleShape(self.hidden, 2 * self.mlp),
                "mlp.down_proj": ModuleShape(self.mlp, self.hidden),
            }
        return {
            "self_attn.q_proj": ModuleShape(self.hidden, self.query),
            "self_attn.k_proj": ModuleShape(self.hidden, self.key_value),
            "self_attn.v_proj": ModuleShape(self.hidden, self.key_value),
            "self_attn.o_proj": ModuleShape(self.query, self.hidden),
            "mlp.gate_proj": ModuleShape(self.hidden, self.mlp),
            "mlp.up_proj": ModuleShape(self.hidden, self.mlp),
            "mlp.down_proj": ModuleShape(self.mlp, self.hidden),
        }


def family_of(config: dict[str, Any], name: str = "the base") -> Family:
    """Return the family of a model by its Hugging Face configuration.

    Raises:
        ValueError: it belongs to none. The message lists the families.
    """
    architectures = config.get("architectures") or []
    for architecture in architectures:
        if family := _BY_ARCHITECTURE.get(architecture):
            return family
    said = ", ".join(map(str, architectures)) or "none"
    known = ", ".join(f"{family.name} ({family.architecture})" for family in FAMILIES)
    raise ValueError(
        f"{name} can't be a base{_why_not(config)} (architectures in its config.json: {said}); "
        f"Loraplex serves dense text models of these families: {known}"
    )


def _why_not(config: dict[str, Any]) -> str:
    """Return what kind of model it is, as far as that is the reason."""
    architectures = " ".join(map(str, config.get("architectures") or [])).lower()
    experts = ("num_experts", "num_local_experts", "n_routed_experts", "moe_intermediate_size")
    if "moe" in architectures or "mixtral" in architectures or any(config.get(e) for e in experts):
        return ": it is a mixture of experts"
    if "forconditionalgeneration" in architectures or "vision_config" in config:
        return ": it isn't a model for text alone"
    return ""
