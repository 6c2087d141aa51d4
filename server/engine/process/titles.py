"""The titles of processes, as `ps` shows them."""

from __future__ import annotations

import contextlib


def set_title() -> None:
    """Show in `ps` what this process is, if the library for that is installed.

    It finds the place of the title now. After a new environment was set, it would not, and vLLM
    couldn't show which process is the engine.
    """
    with contextlib.suppress(ImportError):
        import setproctitle

        setproctitle.setproctitle("Loraplex::ForkServer")
