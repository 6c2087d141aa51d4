"""All layers of a Llama-shaped decoder in one call on CPU, for steps in which each request has one
new token.

`kernel` compiles and calls `decoder.c`. `reading` finds in vLLM's model what it reads, and says why
a model doesn't fit. `replacing` puts it in the place of vLLM's layers for such steps.
"""
