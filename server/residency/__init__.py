"""Where versions are: which slot, host memory, disk; who waits for a slot, who holds one."""
