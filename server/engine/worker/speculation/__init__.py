"""Speculation: the engine checks several guessed tokens of an answer in one step.

Tokens are guessed from what stood before: in the request, and in recent answers of its adapter. An
answer has only tokens that the model says itself, so it is the same with and without guesses. Only
greedy requests get guesses.
"""

PROPOSER = "server.engine.worker.speculation.proposer.Proposer"
"""What vLLM makes to get guesses from."""

SALT = "loraplex_salt"
"""In the sampling parameters' `extra_args`: the salt of the request's part of the prefix cache."""
