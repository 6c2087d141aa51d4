"""Streams the text of an answer as it is, where the request allows no call of a tool.

If the base's family can call tools, vLLM gives each answer to a parser that looks for calls. It
does so even where none is allowed, and for each token it copies the whole answer so far.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starlette.datastructures import State

NO_TOOLS = "none"
"""What vLLM sets as a request's `tool_choice` if it has no tools."""


def stream_plainly(state: State) -> None:
    """Patch vLLM's chat handlers. Their answers stay the same."""
    for name in ("openai_serving_chat", "anthropic_serving_messages"):
        if (handler := getattr(state, name, None)) is not None:
            _patch(handler)


def _patch(handler: Any) -> None:
    from vllm.entrypoints.generate.base.protocol import DeltaMessage

    if handler.parser_cls is None:
        return
    make_parser = handler._make_parser

    def unparsed(delta_text: str, *_args: Any, **_options: Any) -> DeltaMessage | None:
        return DeltaMessage(content=delta_text) if delta_text else None

    def make(request: Any, *args: Any, **options: Any) -> Any:
        parser = make_parser(request, *args, **options)
        if request.tool_choice == NO_TOOLS and _leaves_text(parser):
            parser.parse_delta = unparsed
        return parser

    handler._make_parser = make


def _leaves_text(parser: Any) -> bool:
    """Return whether a parser of vLLM leaves text as it is where no tool may be called."""
    from vllm.parser.abstract_parser import DelegatingParser

    tools = parser.tool_parser
    return (
        isinstance(parser, DelegatingParser)
        and parser.reasoning_parser is None
        and not (tools and tools.engine_based_streaming)
    )
