"""Chat with an adapter through OpenAI's SDK, streamed: `python examples/chat_openai.py [MODEL]`."""

import os
import sys

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("LORAPLEX_URL", "http://127.0.0.1:8000") + "/v1",
    api_key=os.environ["LORAPLEX_API_KEY"],
)
stream = client.chat.completions.create(
    model=sys.argv[1] if len(sys.argv) > 1 else "smart-home",
    messages=[{"role": "user", "content": "Turn on the lights in the kitchen"}],
    temperature=0,
    max_tokens=60,
    stream=True,
)
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
print(f"\n(answered by {chunk.model})")
