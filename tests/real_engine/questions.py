"""What the demo adapters are asked, and what they answer."""

from typing import Any

from openai.types.chat import ChatCompletionMessageParam

from tests.real_engine.running_server import RunningServer

LIGHTS = "Turn on the lights in the kitchen"
LIGHTS_ANSWER = {"intent": "HassTurnOn", "area": "kitchen", "domain": "light"}
BRONCHITIS = "Diagnosis: Acute bronchitis due to rhinovirus"
BRONCHITIS_ANSWER = "Diseases of the respiratory system"
FRANCE = "Name the capital of France."
"""The base says Paris by a wide margin, however a processor rounds."""


def say(text: str) -> list[ChatCompletionMessageParam]:
    return [{"role": "user", "content": text}]


def ask(server: RunningServer, model: str, text: str, **options: object) -> Any:
    """Ask in one message; an answer, or with `stream=True` its chunks."""
    create: Any = server.client().chat.completions.create
    return create(
        model=model, messages=say(text), **{"temperature": 0, "max_tokens": 40, **options}
    )
