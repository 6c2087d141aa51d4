"""OpenAI's Agents SDK over chat completions: one agent's answer."""

import os

from agents import Agent, ModelSettings, OpenAIChatCompletionsModel, Runner, set_tracing_disabled
from openai import AsyncOpenAI

set_tracing_disabled(True)  # traces would go to OpenAI
client = AsyncOpenAI(
    base_url=os.environ["LORAPLEX_URL"] + "/v1", api_key=os.environ["LORAPLEX_API_KEY"]
)
agent = Agent(
    name="home",
    instructions="You control a house.",
    model=OpenAIChatCompletionsModel(model="smart-home", openai_client=client),
    model_settings=ModelSettings(max_tokens=40),
)
answer = Runner.run_sync(agent, "Turn on the lights in the kitchen")
assert answer.final_output
print(answer.final_output)
