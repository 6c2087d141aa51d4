"""LoRA operators for NVIDIA GPUs, and the code around them.

vLLM uses the class in `punica`. Only `kernels` imports Triton. All other modules can be imported,
and mostly tested, on a machine that has no GPU.
"""

OPERATOR_VERSION = "1"
"""Raise it when the operator's arguments change: compiled models in vLLM's cache call it."""
