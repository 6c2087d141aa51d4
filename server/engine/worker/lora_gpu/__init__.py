"""LoRA operators for NVIDIA GPUs, and what they need around them.

`punica` is what vLLM sees. Only `kernels` imports Triton; everything else can be imported, and
most of it tested, on a machine without a GPU.
"""

OPERATOR_VERSION = "1"
"""Raise it when the arguments of the operator change: compiled models in vLLM's cache call it."""
