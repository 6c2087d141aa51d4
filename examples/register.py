"""Upload an adapter and wait for the verdict: `python examples/register.py NAME DIRECTORY`.

The directory holds `adapter_config.json` and `adapter_model.safetensors`, as PEFT saves them.
"""

import os
import sys
import uuid
from pathlib import Path

import httpx

name, directory = sys.argv[1], Path(sys.argv[2])
url = os.environ.get("LORAPLEX_URL", "http://127.0.0.1:8000")
headers = {
    "Authorization": f"Bearer {os.environ['LORAPLEX_API_KEY']}",
    "Idempotency-Key": str(uuid.uuid4()),  # the same key again repeats the answer, not the work
}
files = [
    ("files", (file, (directory / file).read_bytes()))
    for file in ("adapter_config.json", "adapter_model.safetensors")
]
answer = httpx.post(
    f"{url}/admin/adapters",
    params={"wait": "true"},
    data={"name": name},
    files=files,
    headers=headers,
    timeout=300,
)
if answer.status_code == 422:
    for reason in answer.json()["error"]["reasons"]:
        print("refused:", reason["message"])
    sys.exit(1)
answer.raise_for_status()
version = answer.json()
print(f"{version['model']} is {version['state']}, {version['digest']}")
