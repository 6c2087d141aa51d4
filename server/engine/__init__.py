"""The only place that knows vLLM: one pinned version, its internals behind this door.

`interface` says what the rest of the server may ask of an engine; `supervisor` does it with vLLM.
"""
