"""A local server that answers as a Hugging Face hub does, as far as downloads go."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class HubServer:
    """Repositories of files at revisions; `requests` are all that were asked of it."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        """Files by name, by commit, by repository."""
        self.revisions: dict[tuple[str, str], str] = {}
        """Commits by (repository, branch or tag)."""
        self.gated: set[str] = set()
        self.claimed_sizes: dict[str, int] = {}
        """What it says of a file's size, where that isn't so."""
        self.requests: list[str] = []
        self.before_answer: Callable[[str], None] = lambda _: None
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        )
        self._thread.start()

    def push(self, repository: str, files: dict[str, bytes], branch: str = "main") -> str:
        """A new commit; a hash like the hub's."""
        commits = self.repositories.setdefault(repository, {})
        commit = hashlib.sha1(repr((repository, files, len(commits))).encode()).hexdigest()
        commits[commit] = files
        self.revisions[repository, branch] = commit
        return commit

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, *, with_body: bool) -> None:
            hub.requests.append(f"{self.command} {self.path}")
            hub.before_answer(hub.requests[-1])
            if self.path.startswith("/api/models/"):
                return self._list(self.path.removeprefix("/api/models/"))
            try:
                org, name, resolve, revision, file = self.path.strip("/").split("/", 4)
                repository = f"{org}/{name}"
                commits = hub.repositories[repository]
                assert resolve == "resolve"
            except (ValueError, KeyError, AssertionError):
                return self._refuse(404, "RepoNotFound")
            if repository in hub.gated:
                return self._refuse(403, "GatedRepo")
            commit = hub.revisions.get((repository, revision), revision)
            if commit not in commits:
                return self._refuse(404, "RevisionNotFound")
            if file not in commits[commit]:
                return self._refuse(404, "EntryNotFound", commit)
            body = commits[commit][file]
            self.send_response(200)
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", commit)
            claimed = hub.claimed_sizes.get(file, len(body))
            self.send_header("Content-Length", str(len(body) if with_body else claimed))
            self.end_headers()
            if with_body:
                self.wfile.write(body)
            return None

        def _list(self, asked: str) -> None:
            """The files of a folder, and of those below if that is asked."""
            path, _, query = asked.partition("?")
            org, name, _, revision, *folder = path.split("/")
            commits = hub.repositories[f"{org}/{name}"]
            files = commits[hub.revisions.get((f"{org}/{name}", revision), revision)]
            below = "".join(f"{part}/" for part in folder)
            deeply = "recursive=true" in query.lower()
            found = [
                {"type": "file", "path": file, "size": len(content), "oid": "0" * 40}
                for file, content in files.items()
                if file.startswith(below) and (deeply or "/" not in file.removeprefix(below))
            ]
            if not found:
                return self._refuse(404, "EntryNotFound")
            body = json.dumps(found).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return None

        def _refuse(self, status: int, code: str, commit: str | None = None) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            if commit:
                self.send_header("X-Repo-Commit", commit)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    return Handler
