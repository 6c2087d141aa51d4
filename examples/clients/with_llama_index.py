"""LlamaIndex's OpenAILike: a chat and a stream."""

import os

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

llm = OpenAILike(
    model="smart-home",
    api_base=os.environ["LORAPLEX_URL"] + "/v1",
    api_key=os.environ["LORAPLEX_API_KEY"],
    is_chat_model=True,
    max_tokens=40,
)
ask = [ChatMessage(role="user", content="Turn on the lights in the kitchen")]

answer = llm.chat(ask)
assert answer.message.content
print(answer.raw.model, answer.message.content)

assert "".join(part.delta or "" for part in llm.stream_chat(ask))
