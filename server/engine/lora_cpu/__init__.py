"""LoRA arithmetic on CPU: adapters packed at their own rank, and a compiled kernel for decode.

`packing` holds one layer's adapters; `steps` says which rows of a batch are whose; `kernel`
compiles and calls `rows.c`; `products` is the same in torch. None of them imports vLLM.
"""
