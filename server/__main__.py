"""`python -m server` is the `loraplex` command."""

from server.cli.main import main

main()
