"""Where versions are (slot, host memory, disk), and which requests hold or await a slot."""
