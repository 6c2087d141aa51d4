"""`python -m server.bundled_base.prepare DIRECTORY`: the GGUF becomes a BF16 safetensors model."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

from server.bundled_base import gguf_file

CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")


def prepare(directory: Path) -> None:
    """Convert into a scratch directory beside the target, then rename: whole or not at all."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, logging

    logging.disable_progress_bar()
    gguf = gguf_file()
    directory.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=directory.parent))
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.save_pretrained(scratch)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.chat_template = CHAT_TEMPLATE.read_text(encoding="utf-8")
    tokenizer.save_pretrained(scratch)
    try:
        scratch.rename(directory)
    except OSError:
        if not (directory / "config.json").is_file():  # else: another process was faster
            raise
        shutil.rmtree(scratch)


if __name__ == "__main__":
    os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    prepare(Path(sys.argv[1]))
