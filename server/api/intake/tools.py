"""The tools of a request, without those that this server can't offer the model.

An empty list is no tools. Clients may list tools that the provider of the Responses API runs
(`web_search`) with every request, so that offering one is no error. Demanding one is: this server
runs none.
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


_NO_DEMANDS = (None, "auto", "none")


def leave_out_empty_tools(body: dict[str, Any]) -> None:
    """Take an empty list of tools out of a body: clients that always send the field mean no tools.

    Raises:
        InvalidRequest: `tool_choice` demands a tool.
    """
    if body.get("tools") != []:
        return
    choice = body.get("tool_choice")
    kind = choice.get("type") if isinstance(choice, dict) else choice  # Anthropic's is an object
    if kind not in _NO_DEMANDS:
        raise InvalidRequest(
            "tool_choice: there is no tool to call, since `tools` is empty", param="tool_choice"
        )
    del body["tools"]
    body.pop("tool_choice", None)


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
