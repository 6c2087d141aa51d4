"""`python -m server` is the `loraplex` command."""

from server.cli import main

main()
