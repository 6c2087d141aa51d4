"""Runs each client's example against a real server: `make clients`, `make clients CLIENTS=litellm`.

Each client has an environment of its own below `build/clients/`, with the versions that
`requirements/clients/` pins. What ran is written to `examples/clients/results.json`, which
`docs/clients.md` shows.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from loadtest.started_server import started_server
from server.bundled_base import ensure_bundled_base

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "clients"
LOCKS = ROOT / "requirements" / "clients"
RESULTS = EXAMPLES / "results.json"
ENVIRONMENTS = ROOT / "build" / "clients"
INSTALL_SECONDS, RUN_SECONDS = 1800, 300


@dataclass(frozen=True)
class Client:
    """A client of `examples/clients/clients.toml`."""

    name: str
    title: str
    packages: tuple[str, ...]
    example: str
    point: str

    @property
    def is_node(self) -> bool:
        """Whether it runs in Node and not in Python."""
        return self.example.endswith(".mjs")

    @property
    def environment(self) -> Path:
        """The folder that its packages are installed in."""
        return ENVIRONMENTS / self.name


def clients() -> list[Client]:
    """Return every client of the matrix."""
    table = tomllib.loads((EXAMPLES / "clients.toml").read_text())
    return [
        Client(name, **{**row, "packages": tuple(row["packages"])}) for name, row in table.items()
    ]


def install(client: Client) -> None:
    """Make the client's environment, unless it is there.

    Raises:
        subprocess.CalledProcessError, TimeoutExpired: it can't be installed.
    """
    if client.is_node:
        client.environment.mkdir(parents=True, exist_ok=True)
        for file in (LOCKS / client.name).iterdir():
            shutil.copy(file, client.environment)
        _run(["npm", "ci", "--no-audit", "--no-fund"], INSTALL_SECONDS, cwd=client.environment)
        return
    uv = str(Path(sys.executable).parent / "uv")
    python = client.environment / "bin" / "python"
    if not python.exists():
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        _run([uv, "venv", "-q", "-p", version, str(client.environment)], INSTALL_SECONDS)
    lock = LOCKS / f"{client.name}.txt"
    _run([uv, "pip", "sync", "-q", "-p", str(python), str(lock)], INSTALL_SECONDS)


def run(client: Client, url: str, key: str) -> str:
    """Run the client's example, and return what it printed.

    Raises:
        subprocess.CalledProcessError, TimeoutExpired: it failed, or took too long.
    """
    environment = {name: value for name, value in os.environ.items() if "LORAPLEX" not in name}
    environment |= {
        "LORAPLEX_URL": url,
        "LORAPLEX_API_KEY": key,
        "PATH": f"{client.environment / 'bin'}:{os.environ['PATH']}",
        "TOKENIZER": str(ensure_bundled_base()),
        "HF_HUB_OFFLINE": "1",
        "NO_COLOR": "1",
    }
    example = EXAMPLES / client.example
    folder = EXAMPLES
    if client.is_node:  # Node looks for packages beside the file
        folder = client.environment
        example = Path(shutil.copy(example, folder))
    runner = {".py": ["python"], ".mjs": ["node"], ".sh": ["bash"]}[example.suffix]
    return _run([*runner, str(example)], RUN_SECONDS, cwd=folder, env=environment)


def _run(
    command: list[str], seconds: float, cwd: Path | None = None, env: dict[str, str] | None = None
) -> str:
    done = subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, timeout=seconds, check=False
    )
    if done.returncode:
        raise subprocess.CalledProcessError(
            done.returncode, command, done.stdout[-2000:] + done.stderr[-3000:]
        )
    return done.stdout


@contextlib.contextmanager
def _server() -> Iterator[tuple[str, str]]:
    """Yield the address and the key of LORAPLEX_URL, or of a server that is started."""
    if "LORAPLEX_URL" in os.environ:
        yield os.environ["LORAPLEX_URL"], os.environ["LORAPLEX_API_KEY"]
        return
    with started_server(Console(stderr=True), "--demo") as server:
        yield server.url, server.key


def main() -> int:
    """Install and run the clients that are named, or all; return the exit code."""
    chosen = [client for client in clients() if client.name in sys.argv[1:] or not sys.argv[1:]]
    outcomes = {client.name: _attempt("installed", client, install) for client in chosen}
    with _server() as (url, key):
        for client in chosen:
            if outcomes[client.name] == "installed":
                attempt = _attempt("passed", client, lambda client: run(client, url, key))
                outcomes[client.name] = attempt
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    results |= {name: {"outcome": outcome, "on": today} for name, outcome in outcomes.items()}
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    failed = [name for name, outcome in outcomes.items() if outcome != "passed"]
    print(f"{len(chosen) - len(failed)} of {len(chosen)} passed", *failed)
    return 1 if failed else 0


def _attempt(outcome: str, client: Client, do: Callable[[Client], str | None]) -> str:
    """Return the outcome, or `not` and the outcome; print what was said, or what failed."""
    try:
        said = (do(client) or "").strip()
    except (subprocess.SubprocessError, OSError) as error:
        print(f"{client.name}: not {outcome}: {error}\n{getattr(error, 'output', '')}", flush=True)
        return f"not {outcome}"
    print(f"{client.name}: {outcome}\n{said[-300:]}", flush=True)
    return outcome


if __name__ == "__main__":
    sys.exit(main())
