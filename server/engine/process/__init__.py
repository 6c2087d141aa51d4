"""The engine's process on CPU: it is prepared while the server's process is still starting."""
