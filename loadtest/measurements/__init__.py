"""One runnable measurement each."""
