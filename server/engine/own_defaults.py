"""A version's own defaults for its requests: chat template, stop tokens and sampling.

vLLM has one of each for all requests. This module makes its handlers use those of the running
request's version, or else the base's. A template is a tenant's code, so it is never compiled in
this process.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from adapters_registry.chat_templates.renderer import TemplateRenderer
from adapters_registry.chat_templates.sandbox import TemplateFailed
from adapters_registry.check.companions.companions import chat_template_of
from adapters_registry.records.catalog import VersionRecord
from server.engine.chat_formats import THINK_END
from server.workers import Workers

if TYPE_CHECKING:
    from starlette.datastructures import State
    from vllm.renderers.hf import HfRenderer

NUM_RENDERERS = 2
PER_TENANT = 1
"""How many renderers one tenant's templates may keep busy."""
NUM_READERS = 4
MAX_CACHED_TEMPLATES = 256
_NOT_FOR_TEMPLATES = frozenset(
    {"chat_template", "tokenize", "return_dict", "continue_final_message", "messages"}
)


@dataclass(frozen=True)
class OwnDefaults:
    """The defaults that one version sets. Where a field is empty, the base's default holds."""

    tenant: str = ""
    """The tenant that sent the request."""
    template: str = ""
    content_format: str = ""
    special_tokens: Mapping[str, str] | None = None
    stop_token_ids: tuple[int, ...] = ()
    sampling: Mapping[str, float] | None = None


current_own: ContextVar[OwnDefaults | None] = ContextVar("own_defaults", default=None)


class SamplingDefaults(Mapping[str, Any]):
    """Replaces a vLLM handler's sampling defaults: the version's values override the base's."""

    def __init__(self, of_base: Mapping[str, Any]) -> None:
        self._of_base = of_base

    def _now(self) -> Mapping[str, Any]:
        own = current_own.get()
        if own is None:
            return self._of_base
        values = {**self._of_base, **(own.sampling or {})}
        if "max_new_tokens" in values:
            values["max_tokens"] = values.pop("max_new_tokens")
        if own.stop_token_ids:
            values["stop_token_ids"] = [*values.get("stop_token_ids", ()), *own.stop_token_ids]
        return values

    def __getitem__(self, name: str) -> Any:
        return self._now()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._now())

    def __len__(self) -> int:
        return len(self._now())


class OwnTemplates:
    """Reads versions' own defaults, and caches the texts of the templates used last."""

    def __init__(self, fetch: Callable[[str], Path]) -> None:
        """`fetch` returns a digest's directory, loaded from the origin if needed. It may block."""
        self._fetch = fetch
        self._texts: OrderedDict[str, str] = OrderedDict()
        self._readers = Workers("template-read", NUM_READERS)

    async def of(self, version: VersionRecord | None, tenant: str) -> OwnDefaults | None:
        """Return a version's own defaults, or None if it sets none.

        Raises:
            RegistryError: the version's template can't be read now.
        """
        checked = version.metadata.get("checked") if version else None
        serving = checked.get("serving") if isinstance(checked, dict) else None
        if version is None or not isinstance(serving, dict) or not any(serving.values()):
            return None
        template = await self._text(version.digest) if serving["chat_template"] else ""
        return OwnDefaults(
            tenant=tenant,
            template=template,
            content_format=serving["content_format"],
            special_tokens=serving["special_tokens"],
            stop_token_ids=tuple(serving["stop_token_ids"]),
            sampling=serving["sampling"],
        )

    async def _text(self, digest: str) -> str:
        if (text := self._texts.get(digest)) is None:
            directory = await self._readers.run(self._fetch, digest)
            text = self._texts[digest] = chat_template_of(directory)
            if len(self._texts) > MAX_CACHED_TEMPLATES:
                self._texts.popitem(last=False)
        self._texts.move_to_end(digest)
        return text


def add_stop_tokens(request: BaseModel, own: OwnDefaults) -> None:
    """Add the version's stop tokens to a request, if its type has a field for them."""
    if own.stop_token_ids and "stop_token_ids" in type(request).model_fields:
        asked = getattr(request, "stop_token_ids", None) or []
        together = list(dict.fromkeys([*asked, *own.stop_token_ids]))
        request.stop_token_ids = together  # type: ignore[attr-defined]


def expect_no_reasoning(request: BaseModel, own: OwnDefaults) -> None:
    """Let nothing of the answer be taken for reasoning if the version's own template shows none.

    The base's may. Then vLLM's parser would take all of the answer for reasoning, up to a
    `</think>` that this version never learned to write. What the request itself says, holds.
    """
    if not own.template or THINK_END in own.template:
        return
    if "chat_template_kwargs" in type(request).model_fields:
        given = getattr(request, "chat_template_kwargs", None) or {}
        request.chat_template_kwargs = {  # type: ignore[attr-defined]
            "enable_thinking": False,
            **given,
        }


def follow_versions(state: State) -> None:
    """Patch vLLM's handlers and its renderer to use the running request's own defaults."""
    for name in ("openai_serving_chat", "openai_serving_completion", "openai_serving_responses"):
        _follow_sampling(getattr(state, name, None))
    _follow_sampling(getattr(state, "anthropic_serving_messages", None))
    _follow_template(state.online_renderer.renderer)


def _follow_sampling(handler: Any) -> None:
    if handler is not None:
        handler.default_sampling_params = SamplingDefaults(handler.default_sampling_params)


def _follow_template(renderer: HfRenderer) -> None:
    render_with_base, apply_of_base = (
        renderer.render_messages_async,
        renderer._apply_chat_template_async,
    )
    workers = Workers("chat-template", NUM_RENDERERS, per_tenant=PER_TENANT)
    renderers: SimpleQueue[TemplateRenderer] = SimpleQueue()
    for _ in range(NUM_RENDERERS):
        renderers.put(TemplateRenderer())

    async def render(messages: Any, params: Any) -> Any:
        if (own := current_own.get()) is not None and own.template:
            # Without a format, vLLM would compile the template to find it.
            params = replace(params, chat_template_content_format=own.content_format)
        return await render_with_base(messages, params)

    async def apply(model_config: Any, tokenizer: Any, conversation: Any, **options: Any) -> Any:
        own = current_own.get()
        if own is None or not own.template:
            return await apply_of_base(model_config, tokenizer, conversation, **options)
        return await workers.run_for(own.tenant, write, own, tokenizer, conversation, options)

    def write(own: OwnDefaults, tokenizer: Any, conversation: Any, options: Any) -> str:
        renderer = renderers.get()
        try:
            return _render(renderer, own, tokenizer, conversation, options)
        finally:
            renderers.put(renderer)

    renderer.render_messages_async = render
    renderer._apply_chat_template_async = apply


def _render(
    renderer: TemplateRenderer,
    own: OwnDefaults,
    tokenizer: Any,
    conversation: list[dict[str, Any]],
    options: dict[str, Any],
) -> str:
    from vllm.exceptions import VLLMValidationError

    messages = [_as_system(own.template, message) for message in conversation]
    variables = {name: value for name, value in options.items() if name not in _NOT_FOR_TEMPLATES}
    tokens = {name: str(text) for name, text in tokenizer.special_tokens_map.items()}
    variables = {**tokens, **(own.special_tokens or {}), **variables, "messages": messages}
    continued = _text_of(messages[-1]) if options.get("continue_final_message") else None
    try:
        return renderer.render(own.template, variables, continued)
    except TemplateFailed as error:
        raise VLLMValidationError(f"the adapter's own chat template: {error}") from error


def _as_system(template: str, message: dict[str, Any]) -> dict[str, Any]:
    """Turn a message's role `developer` into `system` if the template doesn't know `developer`."""
    if message.get("role") == "developer" and "developer" not in template:
        return {**message, "role": "system"}
    return message


def _text_of(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        content = next((p["text"] for p in reversed(content) if p.get("type") == "text"), "")
    return content if isinstance(content, str) else ""
