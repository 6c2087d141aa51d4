"""A folder of this server's own for the sockets between its processes.

vLLM leaves three sockets behind at each start of an engine. By itself it puts them among the
temporary files of all programs.
"""

from __future__ import annotations

import logging
import multiprocessing
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from server.engine import environment

log = logging.getLogger(__name__)


@contextmanager
def socket_folder() -> Iterator[str | None]:
    """Within this context, sockets of this process, its fork server and vLLM stand in one folder.

    It yields the folder's path, or None if it can't be made. Afterwards the folder is removed.
    """
    try:
        folder = tempfile.mkdtemp(prefix="loraplex-")
    except OSError as error:
        log.warning(
            "the engine starts more slowly, because no folder for sockets can be made: set "
            "TMPDIR to a folder that this server may write to (%s)",
            error,
        )
        yield None
        return
    try:
        _use(folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _use(folder: str) -> None:
    """Have multiprocessing and vLLM put their sockets into the folder.

    multiprocessing would remove a folder of its own in an exit handler. That may not run, and fails
    if the folder is gone.
    """
    process: Any = multiprocessing.current_process()
    process._config["tempdir"] = folder
    environment.offer_socket_folder(folder)
