"""Anthropic's SDK for Python: a message, a stream, and how many tokens a prompt has."""

import os

from anthropic import Anthropic

client = Anthropic(base_url=os.environ["LORAPLEX_URL"], api_key=os.environ["LORAPLEX_API_KEY"])
ask = [{"role": "user", "content": "Turn on the lights in the kitchen"}]

message = client.messages.create(model="smart-home", max_tokens=40, messages=ask)
assert message.content[0].text
print(message.model, message.content[0].text)

with client.messages.stream(model="smart-home", max_tokens=40, messages=ask) as stream:
    assert "".join(stream.text_stream)

counted = client.messages.count_tokens(model="smart-home", messages=ask)
assert counted.input_tokens == message.usage.input_tokens
