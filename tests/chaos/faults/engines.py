"""Faults of the real engine: its processes killed or stopped in the middle of streams."""

from __future__ import annotations

import signal

from tests.chaos.answers import NUM_TOKENS
from tests.chaos.fault import Fault
from tests.chaos.site import Site
from tests.real_engine.codes import answer, code_of, write_adapter, write_base
from tests.real_engine.running_server import RunningServer

HANG_SECONDS = 8


class EngineKilledOrStopped(Fault):
    name = "engine killed or stopped"
    promise = (
        "the server notices, answers 503, and starts another engine; a stream that is cut off "
        "never looks complete; no answer is another adapter's"
    )
    done = (
        "real vLLM on CPU, streams of three adapters in two slots; the engine's process gets "
        f"SIGKILL or SIGSTOP in turn (LORAPLEX_HANG_SECONDS={HANG_SECONDS})"
    )
    rounds = 6
    seconds = 0.0, 0.0
    has_drivers = False

    def open(self, site: Site) -> None:
        write_base(site.folder / "base")
        sources, texts = {}, {}
        for number in range(3):
            name = f"home{number}"
            sources[name] = site.folder / name
            write_adapter(sources[name], number + 1)
            texts[name] = answer(code_of(number + 1), NUM_TOKENS)
        self.server = RunningServer(
            site.folder / "var",
            *("--base", str(site.folder / "base"), "--local-roots", str(site.folder)),
            *("--max-loras", "2", "--max-cpu-loras", "4", "--kv-cache-gib", "0.02"),
            *("--hang-seconds", str(HANG_SECONDS), "--max-engine-restarts", "1000"),
        )
        site.stack.callback(self.server.stop)
        site.start_real(self.server, sources, texts)
        self._round = 0

    def inject(self, site: Site) -> None:
        self._round += 1
        site.places[0].excuse(True)
        for process in self.server.engine_processes():
            process.send_signal(signal.SIGKILL if self._round % 2 else signal.SIGSTOP)

    def heal(self, site: Site) -> None:
        """Nobody does anything: the server mends itself."""
