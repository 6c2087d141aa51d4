"""Collected in Triton's interpreter (see test_in_interpreter.py), and where there is a GPU."""

import os
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ON_CARD = torch.cuda.is_available() and not INTERPRETED
collect_ignore_glob = [] if INTERPRETED or ON_CARD else ["*.py"]

if INTERPRETED:
    from triton.backends import backends

    # vLLM's CPU build looks for a backend of this name before it defines its own kernels, which
    # one test runs. The interpreter needs none.
    backends.setdefault("cpu", SimpleNamespace(driver=SimpleNamespace(is_active=lambda: False)))


@pytest.fixture(autouse=True)
def _where_tensors_are() -> Iterator[None]:
    torch.set_default_device("cuda" if ON_CARD else "cpu")
    yield
    torch.set_default_device(None)
