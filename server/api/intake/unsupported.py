"""Features of the APIs that this server lacks. They are refused with the reason, never ignored."""

from __future__ import annotations

from typing import Any

from server.errors import InvalidRequest

_STATELESS = "this server stores no responses: send the whole conversation as `input`"
_UNSUPPORTED = {
    "use_beam_search": "beam search is not supported: ask for n choices instead",
    "background": "responses are not generated in the background: leave it out, or stream",
    "previous_response_id": _STATELESS,
}


MAX_STOP_STRINGS = 4
"""As many as OpenAI's API takes."""
MAX_CHARACTERS = {"stop": 4096, "stop_sequences": 4096, "bad_words": 16384}
"""The longest that the strings of a list may be together. Stop strings are looked for after every
token, and bad words are tokenised on the event loop."""


def refuse_unsupported(body: dict[str, Any]) -> None:
    """Raise `InvalidRequest` if a body asks for one of these."""
    for name, reason in _UNSUPPORTED.items():
        if body.get(name):
            raise InvalidRequest(f"{name}: {reason}", param=name)
    stop = body.get("stop")
    if isinstance(stop, list) and len(stop) > MAX_STOP_STRINGS:
        reason = f"at most {MAX_STOP_STRINGS} strings, not {len(stop)}"
        raise InvalidRequest(f"stop: {reason}", param="stop")
    for name, most in MAX_CHARACTERS.items():
        given = body.get(name)
        strings = given if isinstance(given, list) else [given]
        if sum(len(each) for each in strings if isinstance(each, str)) > most:
            raise InvalidRequest(f"{name}: at most {most} characters in all", param=name)
