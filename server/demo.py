"""The demo of `make serve`: two adapters of this project's own making, and what to try."""

from __future__ import annotations

from pathlib import Path

from adapters_registry.models import VersionState
from adapters_registry.names import DEFAULT_TENANT
from adapters_registry.records import Registry
from adapters_registry.sources import stage_local_path
from server.settings import Settings

DEMO_DIR = Path(__file__).parent.parent / "training" / "demo"
PROMPTS = {
    "smart-home": "Turn on the lights in the kitchen",
    "icd10-chapter": "Diagnosis: Acute bronchitis due to rhinovirus",
}


def register(registry: Registry) -> None:
    """Register the demo adapters; what is there already stays as it is."""
    for name in PROMPTS:
        source = str(DEMO_DIR / name)
        version, _ = registry.register(
            DEFAULT_TENANT,
            name,
            source,
            lambda staged, source=source: stage_local_path(source, (DEMO_DIR,), staged, 1 << 30),  # type: ignore[misc]
        )
        if version.state is VersionState.PENDING:
            registry.check(version)


def examples(address: str, settings: Settings) -> str:
    """A curl command and an SDK snippet to paste, with the admin key in them."""
    key = settings.admin_key_file.read_text().strip()
    name, prompt = next(iter(PROMPTS.items()))
    return f"""
API key: {key}

curl {address}/v1/chat/completions -H 'Authorization: Bearer {key}' \\
  -H 'Content-Type: application/json' \\
  -d '{{"model": "{name}", "temperature": 0, "messages": [{{"role": "user", "content": "{prompt}"}}]}}'

from openai import OpenAI
client = OpenAI(base_url="{address}/v1", api_key="{key}")
for model in ("{settings.served_base_name}", {", ".join(f'"{n}"' for n in PROMPTS)}):
    answer = client.chat.completions.create(
        model=model, temperature=0, max_tokens=60,
        messages=[{{"role": "user", "content": "{prompt}"}}])
    print(answer.model, "->", answer.choices[0].message.content)
"""
