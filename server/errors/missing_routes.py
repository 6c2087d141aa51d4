"""Messages for clients that ask for a route which this server does not have."""

from __future__ import annotations

SERVED = "/v1/chat/completions, /v1/completions, /v1/responses and /v1/messages"

_UNDER_V1 = ("/chat/completions", "/completions", "/responses", "/messages", "/models")
"""Routes that a client asks for whose base URL lacks `/v1`."""

_OF_OPENAI = {
    "embeddings": "embeddings",
    "files": "files",
    "moderations": "moderations",
    "images": "images",
    "audio": "audio",
    "batches": "batches",
    "fine_tuning": "fine-tuning jobs",
    "assistants": "assistants",
    "threads": "threads",
    "vector_stores": "vector stores",
    "realtime": "realtime sessions",
    "uploads": "uploads",
    "evals": "evals",
    "containers": "containers",
    "conversations": "conversations",
    "rerank": "rerankings",
    "score": "scores",
}
"""The first part of OpenAI's other routes below /v1/, and what they are about."""


def message_for(path: str) -> str:
    """Return one sentence that says what to ask instead of a path that does not exist."""
    path = path.rstrip("/")
    for route in _UNDER_V1:
        if path.endswith(route) and path != f"/v1{route}":
            return f"there is no such route: did you mean /v1{route}?"
    if path.startswith("/v1/responses/"):
        return "answers aren't kept here: send the earlier items as `input` of /v1/responses"
    first = path.removeprefix("/v1/").split("/")[0]
    if path.startswith("/v1/") and first in _OF_OPENAI:
        return f"{_OF_OPENAI[first]} aren't served here; {SERVED} are"
    return "there is no such route; /docs lists them"
