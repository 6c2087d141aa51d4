"""A server as its container starts it, with the chart's settings, but for the engine.

It takes the place of the image's entry point, `loraplex`; other commands than `serve` are its own.
"""

from __future__ import annotations

import asyncio
import sys

from adapters_registry.check.base import BaseSpec
from adapters_registry.registry import Registry
from server.app import build_server
from server.auth import Keys
from server.cli.main import main
from server.process.data_dir import own_data_dir, take_server_id
from server.process.listening import HTTP_SETTING, listen
from server.process.running import RunningServer
from server.process.startup import open_content, provide_admin_key, provide_session_secret
from server.settings import load_settings
from tests.deploy.replica import TAKE_UP_SECONDS, StreamingEngine
from tests.tiny import TINY_BASE


def serve() -> int:
    """Serve until a signal ends it; return the exit code."""
    settings = load_settings()
    with listen(settings.host, settings.port, HTTP_SETTING) as listener, own_data_dir(settings):
        base = BaseSpec.from_config("tiny", TINY_BASE, max_rank=settings.max_lora_rank)
        own, before = take_server_id(settings)
        content = open_content(settings)
        registry = Registry(settings.records_url, content, base, server_id=own, former_id=before)
        keys = Keys(registry)
        provide_admin_key(settings, keys)
        secret = provide_session_secret(settings)
        engine = StreamingEngine()
        server = build_server(settings, registry, engine, keys=keys, session_secret=secret)

        async def prepare(engine_is_up: asyncio.Event) -> None:
            await engine_is_up.wait()
            await server.services.gate.take_up(TAKE_UP_SECONDS)

        return asyncio.run(RunningServer(server, engine, prepare).run(listener))


if __name__ == "__main__":
    if sys.argv[1:] != ["serve"]:
        main()
    sys.exit(serve())
