"""Tools of the Responses API that its provider runs: this server runs none, and says so.

Clients may list such tools with every request, so that offering one is no error. Demanding one is.
"""

from __future__ import annotations

from typing import Any

from server.errors import InvalidRequest

HOSTED = frozenset(
    [
        *("web_search", "web_search_2025_08_26"),
        *("web_search_preview", "web_search_preview_2025_03_11"),
        *("file_search", "code_interpreter", "image_generation", "mcp"),
        *("computer", "computer_use_preview", "local_shell", "shell", "apply_patch"),
    ]
)


def leave_out_hosted_tools(body: dict[str, Any]) -> tuple[str, ...]:
    """Take such tools out of a body, and return their types.

    Raises:
        InvalidRequest: `tool_choice` demands one of them, or some tool where none is left.
    """
    tools, choice = body.get("tools"), body.get("tool_choice")
    if not isinstance(tools, list):
        return ()
    left_out = tuple(dict.fromkeys(kind for tool in tools if (kind := _hosted(tool))))
    if not left_out:
        return ()
    if demanded := _hosted(choice):
        raise InvalidRequest(
            f"tool_choice: {demanded} tools aren't run here: offer functions", param="tool_choice"
        )
    body["tools"] = [tool for tool in tools if not _hosted(tool)]
    if not body["tools"]:
        if choice == "required":
            raise InvalidRequest(
                f"tool_choice: no tool is left to call: {', '.join(left_out)} aren't run here",
                param="tool_choice",
            )
        del body["tools"]
        body.pop("tool_choice", None)
    return left_out


def _hosted(tool: Any) -> str:
    kind = tool.get("type") if isinstance(tool, dict) else None
    return kind if isinstance(kind, str) and kind in HOSTED else ""
