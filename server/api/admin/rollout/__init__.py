"""The admin routes of rollouts: aliases and judged canaries."""
