"""Instructor: an object from an answer, by JSON schema and by a forced tool call."""

import os

import instructor
from openai import OpenAI
from pydantic import BaseModel


class Light(BaseModel):
    room: str
    is_on: bool


openai = OpenAI(base_url=os.environ["LORAPLEX_URL"] + "/v1", api_key=os.environ["LORAPLEX_API_KEY"])
for mode in (instructor.Mode.JSON_SCHEMA, instructor.Mode.TOOLS):
    client = instructor.from_openai(openai, mode=mode)
    light = client.chat.completions.create(
        model="base",
        messages=[{"role": "user", "content": "Turn on the lights in the kitchen"}],
        response_model=Light,
    )
    assert isinstance(light, Light)
    print(mode.value, light)
