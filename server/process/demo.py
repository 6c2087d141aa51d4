"""The demo of `make serve`: two adapters that this project trained, and requests to try."""

from __future__ import annotations

import json
from pathlib import Path

from adapters_registry import rechecks
from adapters_registry.names import DEFAULT_TENANT
from adapters_registry.records.catalog import VersionRecord
from adapters_registry.registry import Registry
from adapters_registry.sources.local import find_local
from server.settings import Settings

DEMO_DIR = Path(__file__).parents[2] / "training" / "demo"
PROMPTS = {
    "smart-home": "Turn on the lights in the kitchen",
    "icd10-chapter": "Diagnosis: Acute bronchitis due to rhinovirus",
}


def register(registry: Registry) -> None:
    """Register the demo adapters that are not there yet; the gate checks them later."""
    for name in PROMPTS:
        if (DEFAULT_TENANT, name) in registry.catalog.adapters:
            continue
        found = find_local(str(DEMO_DIR / name), (DEMO_DIR,))
        registry.register(DEFAULT_TENANT, name, found.name, found.stage)


def unchecked(registry: Registry) -> list[VersionRecord]:
    """Return the demo's versions that the gate has not checked yet on this base."""
    names = [(DEFAULT_TENANT, name) for name in PROMPTS]
    new = [v for v in registry.unfinished() if (v.tenant, v.name) in names]
    return new + rechecks.begin(registry, names)


def examples(address: str, settings: Settings) -> str:
    """Return a curl command and an SDK snippet to paste, with the admin key in them."""
    file = settings.admin_key_path
    key = file.read_text().strip() if file.is_file() else "<your key>"
    name, prompt = next(iter(PROMPTS.items()))
    message = {"role": "user", "content": prompt}
    body = json.dumps({"model": name, "temperature": 0, "messages": [message]})
    return f"""
URL:     {address}
API key: {key}

curl {address}/v1/chat/completions \\
  -H 'Authorization: Bearer {key}' \\
  -H 'Content-Type: application/json' \\
  -d '{body}'

from openai import OpenAI
client = OpenAI(base_url="{address}/v1", api_key="{key}")
for model in {[settings.served_base_name, *PROMPTS]}:
    for prompt in {list(PROMPTS.values())}:
        answer = client.chat.completions.create(
            model=model, temperature=0, max_tokens=60,
            messages=[{{"role": "user", "content": prompt}}])
        print(answer.model, "|", prompt, "|", answer.choices[0].message.content)
"""
