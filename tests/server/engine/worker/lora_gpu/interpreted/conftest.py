"""Only for Triton's interpreter: elsewhere nothing here is collected (see test_interpreted.py)."""

import os
from types import SimpleNamespace

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore_glob = [] if INTERPRETED else ["*.py"]

if INTERPRETED:
    from triton.backends import backends

    # vLLM's CPU build looks for a backend of this name before it defines its own kernels, which
    # one test runs. The interpreter needs none.
    backends.setdefault("cpu", SimpleNamespace(driver=SimpleNamespace(is_active=lambda: False)))
