"""Pydantic AI: an agent's text, and an object by the server's structured output."""

import os

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider


class Light(BaseModel):
    room: str
    is_on: bool


provider = OpenAIProvider(
    base_url=os.environ["LORAPLEX_URL"] + "/v1", api_key=os.environ["LORAPLEX_API_KEY"]
)

agent = Agent(OpenAIChatModel("smart-home", provider=provider), model_settings={"max_tokens": 40})
answer = agent.run_sync("Turn on the lights in the kitchen")
assert answer.output
print(answer.output)

typed = Agent(OpenAIChatModel("base", provider=provider), output_type=NativeOutput(Light))
assert isinstance(typed.run_sync("Turn on the lights in the kitchen").output, Light)
