"""OpenAI's SDK for Python: chat, a stream, a parsed answer, and the Responses API."""

import os

from openai import OpenAI
from pydantic import BaseModel


class Light(BaseModel):
    room: str
    is_on: bool


client = OpenAI(base_url=os.environ["LORAPLEX_URL"] + "/v1", api_key=os.environ["LORAPLEX_API_KEY"])
ask = [{"role": "user", "content": "Turn on the lights in the kitchen"}]

answer = client.chat.completions.create(model="smart-home", messages=ask, max_tokens=40)
assert answer.choices[0].message.content
print(answer.model, answer.choices[0].message.content)

stream = client.chat.completions.create(
    model="smart-home", messages=ask, max_tokens=40, stream=True
)
assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)

parsed = client.chat.completions.parse(model="base", messages=ask, response_format=Light)
assert isinstance(parsed.choices[0].message.parsed, Light)

response = client.responses.create(model="smart-home", input=ask, max_output_tokens=40)
assert response.output_text
