"""LiteLLM's SDK: the prefix `openai/` stands before the model's name."""

import os

import litellm

where = {
    "api_base": os.environ["LORAPLEX_URL"] + "/v1",
    "api_key": os.environ["LORAPLEX_API_KEY"],
}
ask = [{"role": "user", "content": "Turn on the lights in the kitchen"}]

answer = litellm.completion(model="openai/smart-home", messages=ask, max_tokens=40, **where)
assert answer.choices[0].message.content
print(answer.model, answer.choices[0].message.content)

stream = litellm.completion(
    model="openai/smart-home@1", messages=ask, max_tokens=40, stream=True, **where
)
assert "".join(chunk.choices[0].delta.content or "" for chunk in stream)
