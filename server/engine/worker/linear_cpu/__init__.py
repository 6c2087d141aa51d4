"""The base's matrix products in bfloat16 on CPU, in place of vLLM's (oneDNN) where they are faster.

`kernel` compiles and calls `linear.c`. `choice` measures which of the two is faster on this
processor. `dispatch` gives vLLM's layers the chosen one when their weights have been loaded.
"""
