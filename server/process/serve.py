"""One server process from its first line to its last.

This module and what it imports are light, so that the port is bound and `/livez` answers within a
second, and the engine's process begins to import at once. `start.py` imports for seconds.
"""

from __future__ import annotations

import gc
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from server import bundled_base
from server.engine import environment
from server.engine.process.fork_server import EngineForkServer, start_fork_server
from server.engine.process.sockets import socket_folder
from server.process.data_dir import own_data_dir
from server.process.early_answers import EarlyAnswers
from server.process.listening import HTTP_SETTING, listen, listen_for_operations
from server.process.signals import ending_at_once
from server.settings import Settings, SettingsError

if TYPE_CHECKING:
    from server.process.dedication import Verify


class Stopwatch:
    """Divides the time since its making into phases that follow each other."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` returns seconds and never goes back."""
        self._clock = clock
        self._started = self._last = clock()
        self._phases: list[tuple[str, float]] = []

    def end(self, phase: str) -> None:
        """End a phase, which began where the last one ended."""
        now = self._clock()
        self._phases.append((phase, now - self._last))
        self._last = now

    def summary(self) -> str:
        """Return all phases' seconds and their sum: `12.3 s (imports 7.1, engine 5.2)`."""
        phases = ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in self._phases)
        return f"{self._last - self._started:.1f} s ({phases})"


@dataclass(frozen=True)
class Beginning:
    """What a server process has before its slow imports."""

    settings: Settings
    announce: Callable[[str], None]
    """Is called with each line that a person at the terminal should read."""
    verify: Verify | None
    """Compares a dedicated server with a shared one, before it is ready."""
    stopwatch: Stopwatch
    listener: socket.socket
    operations: socket.socket | None
    """The socket of the operations' own port."""
    early_answers: EarlyAnswers
    base: str
    """The base's directory or hub id."""
    fork_server: EngineForkServer | None


def serve(
    settings: Settings,
    announce: Callable[[str], None],
    verify: Verify | None = None,
) -> int:
    """Run the server until a signal ends it; return the exit code.

    `announce` is called with each line that a person at the terminal should read. `verify`
    compares a dedicated server with a shared one, before it is ready.

    Raises:
        SettingsError: a setting cannot be used. This is raised before the engine is started.
    """
    stopwatch = Stopwatch()
    with (
        ending_at_once() as at_end,
        listen(settings.host, settings.port, HTTP_SETTING) as listener,
        listen_for_operations(settings) as operations,
        EarlyAnswers([listener, operations] if operations else [listener]) as early_answers,
        own_data_dir(settings),
    ):
        base = prepare_base(settings, announce)
        has_folder = at_end.enter_context(socket_folder()) is not None
        if fork_server := _prepare_engine(settings, base, has_folder):
            at_end.callback(fork_server.close)
        stopwatch.end("prepare")
        gc.disable()  # imports leave nothing to collect, and each collection looks at all of them
        from server.process.start import start

        return start(
            Beginning(
                settings,
                announce,
                verify,
                stopwatch,
                listener,
                operations,
                early_answers,
                base,
                fork_server,
            )
        )


def prepare_base(settings: Settings, announce: Callable[[str], None]) -> str:
    """Return the base's directory or hub id. The bundled base is created at its first use.

    Raises:
        SettingsError: the bundled base cannot be made.
    """
    if settings.base:
        return settings.base
    try:
        if not bundled_base.bundled_base_directory().is_dir():
            announce(f"preparing the bundled base {bundled_base.NAME} (once, about 20 s)")
        return str(bundled_base.ensure_bundled_base())
    except (bundled_base.BundledBaseMissing, subprocess.CalledProcessError) as error:
        raise SettingsError(f"LORAPLEX_BASE (--base): {error}") from error


def _prepare_engine(settings: Settings, base: str, has_folder: bool) -> EngineForkServer | None:
    """Set the variables that vLLM reads, and let the engine's imports begin.

    The fork server needs a folder for its socket.
    """
    environment.prepare_environment(
        base, settings.log_level, settings.cpu_lora_kernels, settings.data_dir
    )
    environment.limit_choices(settings.max_choices)
    environment.choose_gpu_lora(
        settings.gpu_lora_kernels,
        settings.gpu_lora_loading,
        settings.gpu_lora_tiles_file.absolute(),
    )
    return start_fork_server(settings.engine_args) if has_folder else None
