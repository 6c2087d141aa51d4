"""Chat with an adapter through Anthropic's SDK: `python examples/chat_anthropic.py [MODEL]`."""

import os
import sys

from anthropic import Anthropic

client = Anthropic(
    base_url=os.environ.get("LORAPLEX_URL", "http://127.0.0.1:8000"),
    api_key=os.environ["LORAPLEX_API_KEY"],
)
answer = client.messages.create(
    model=sys.argv[1] if len(sys.argv) > 1 else "smart-home",
    messages=[{"role": "user", "content": "Turn on the lights in the kitchen"}],
    extra_body={"temperature": 0},
    max_tokens=60,
)
print("".join(block.text for block in answer.content if block.type == "text"))
print(f"(answered by {answer.model})")
