"""The commands `loraplex adapters`, which manage a running server's registry."""
