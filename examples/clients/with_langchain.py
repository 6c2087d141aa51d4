"""LangChain's ChatOpenAI: an answer, a stream, and an object."""

import os

from langchain_openai import ChatOpenAI
from pydantic import BaseModel


class Light(BaseModel):
    """A light to switch."""

    room: str
    is_on: bool


def model(name: str) -> ChatOpenAI:
    return ChatOpenAI(
        model=name,
        base_url=os.environ["LORAPLEX_URL"] + "/v1",
        api_key=os.environ["LORAPLEX_API_KEY"],
        max_tokens=60,
    )


answer = model("smart-home").invoke("Turn on the lights in the kitchen")
assert answer.content
print(answer.response_metadata["model_name"], answer.content)

assert "".join(chunk.content for chunk in model("smart-home").stream("Close the garage"))

structured = model("base").with_structured_output(Light, method="json_schema")
assert isinstance(structured.invoke("Turn on the lights in the kitchen"), Light)
