"""LoRA arithmetic on CPU: adapters packed at their own rank, and a compiled kernel that uses them.

`packing` holds one layer's adapters. `files` reads and packs a whole adapter. `steps` finds the
slot of each row of a batch. `kernel` compiles and calls `rows.c` and `pack.c`. `products` does the
kernel's work in torch. None of them imports vLLM.
"""
