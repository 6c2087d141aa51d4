"""`python -m server` is the `loraplex` command.

The engine's process runs this module again, as multiprocessing wants it. So it imports nothing
before it is called.
"""


def main() -> None:
    """Run the command line."""
    from server.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
