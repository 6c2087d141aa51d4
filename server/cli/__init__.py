"""The `loraplex` command, a module for each group of subcommands."""
