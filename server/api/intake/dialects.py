"""How clients of other servers name an adapter in a body, put into words of this server. Pure.

LoRAX has `adapter_id` and `adapter_source`; SGLang has `lora_path`. `resolve` takes the form
`base:adapter` of SGLang and Ray.
"""

from __future__ import annotations

from typing import Any

from server.errors import InvalidRequest

BASE_OF_LORAX = "__base_model__"
_PREFIXES = {"local": "", "hub": "hf://", "s3": "s3://"}
"""What stands before LoRAX's id in a model string here, by the source."""


def name_model(body: dict[str, Any]) -> None:
    """Replace a body's `model` by the adapter that it names in another way, if it does.

    Raises:
        InvalidRequest: the adapter cannot be named like this.
    """
    adapter, source = _text(body, "adapter_id"), _text(body, "adapter_source")
    path = _text(body, "lora_path")
    if body.pop("merged_adapters", None):
        raise InvalidRequest(
            "merged_adapters: LoRAX's merges are not made here: name the exact weighted sum as "
            "`model`, as in a*0.7+b*0.3",
            param="merged_adapters",
        )
    if adapter and adapter != BASE_OF_LORAX:
        prefix = _PREFIXES.get(source or "local")
        if prefix is None:
            known = ", ".join(_PREFIXES)
            raise InvalidRequest(f"adapter_source must be one of {known}", param="adapter_source")
        body["model"] = f"{prefix}{adapter.removeprefix(prefix)}"
    elif path:
        body["model"] = path


def _text(body: dict[str, Any], field: str) -> str:
    value = body.pop(field, None)
    if value is not None and not isinstance(value, str):
        raise InvalidRequest(f"{field} must be a string", param=field)
    return value or ""
