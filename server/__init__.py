"""The HTTP server and, in `server.engine`, the vLLM engine behind it."""
