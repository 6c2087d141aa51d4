"""What other settings would do: a simulation fitted to a measured run."""
