"""LoRA arithmetic on CPU: adapters packed at their own rank, and a compiled kernel that uses them.

`packing` holds one layer's adapters; `files` reads and packs a whole adapter; `steps` says which
rows of a batch are whose; `kernel` compiles and calls `rows.c` and `pack.c`; `products` is the
kernel's work in torch. None of them imports vLLM.
"""
