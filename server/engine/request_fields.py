"""Which fields of a request reach vLLM.

Fields are allowed by name. If an upgrade of vLLM adds a field, `test_request_fields.py` fails until
somebody has read what the field does and has added it to one of the lists. A field in no list is
ignored, as vLLM itself ignores fields that it doesn't know.
"""

from __future__ import annotations

from typing import Any


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SAMPLING = _names(
    """
    temperature top_p top_k min_p presence_penalty frequency_penalty repetition_penalty seed stop
    stop_token_ids include_stop_str_in_output ignore_eos skip_special_tokens logit_bias
    """
)
_COMPLETIONS = _SAMPLING | _names(
    """
    model max_tokens n user stream stream_options logprobs prompt_logprobs logprob_token_ids echo
    response_format structured_outputs min_tokens length_penalty use_beam_search
    spaces_between_special_tokens truncate_prompt_tokens truncation_side allowed_token_ids bad_words
    add_special_tokens thinking_token_budget return_tokens_as_token_ids return_token_ids
    return_token_offsets stream_interval cache_salt
    """
)
_MESSAGES = _names(
    """
    model messages system tools tool_choice thinking output_config chat_template_kwargs
    """
)

ALLOWED = {
    "/v1/chat/completions": _COMPLETIONS
    | _names(
        """
        messages max_completion_tokens top_logprobs tools tool_choice parallel_tool_calls
        reasoning_effort include_reasoning add_generation_prompt continue_final_message documents
        chat_template chat_template_kwargs return_prompt_text
        """
    ),
    "/v1/completions": _COMPLETIONS | {"prompt", "suffix"},
    "/v1/responses": _SAMPLING
    | _names(
        """
        model input instructions max_output_tokens max_tool_calls metadata include prompt reasoning
        include_reasoning parallel_tool_calls background previous_response_id service_tier store
        stream text tool_choice tools top_logprobs truncation user prompt_cache_key
        enable_response_messages structured_outputs chat_template_kwargs cache_salt
        """
    ),
    "/v1/messages": _MESSAGES
    | _names(
        """
        max_tokens metadata stop_sequences stream temperature top_k top_p cache_salt
        """
    ),
    "/v1/messages/count_tokens": _MESSAGES,
    "/tokenize": _names(
        """
        model prompt messages add_special_tokens return_token_strs add_generation_prompt
        continue_final_message chat_template chat_template_kwargs tools
        """
    ),
    "/detokenize": frozenset({"model", "tokens"}),
}
"""The fields that clients may set on each route."""

NOT_FOR_CLIENTS = _names(
    """
    priority request_id session_id kv_transfer_params ec_transfer_params vllm_xargs mm_payload
    return_mm_kwargs mm_processor_kwargs media_io_kwargs routed_experts_prompt_start prompt_embeds
    previous_input_messages repetition_detection watermarking
    """
)
"""Fields that steer the engine or its scheduler, or may cost it unbounded work."""

NESTED = {
    "stream_options": frozenset({"include_usage", "continuous_usage_stats"}),
    "structured_outputs": _names(
        """
        json regex choice grammar json_object structural_tag disable_any_whitespace
        disable_additional_properties whitespace_pattern
        """
    ),
}
"""The fields that clients may set in vLLM's own nested objects, by the name of the object."""


def allowed_part(body: dict[str, Any], allowed: frozenset[str]) -> dict[str, Any]:
    """Return only the allowed fields of a body, also within vLLM's own nested objects."""
    return {
        name: _allowed_object(value, NESTED[name])
        if name in NESTED and isinstance(value, dict)
        else value
        for name, value in body.items()
        if name in allowed
    }


def _allowed_object(value: dict[str, Any], allowed: frozenset[str]) -> dict[str, Any]:
    return {name: part for name, part in value.items() if name in allowed}
