"""Asks a process of its own to render a chat template. Calls block: use a thread."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from types import TracebackType
from typing import IO, Any

from adapters_registry.chat_templates.sandbox import TemplateFailed

MAX_TEMPLATE_CHARACTERS = 64 << 10


class TemplateRenderer:
    """One process, started when it is first needed; calls take turns."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def content_format(self, template: str) -> str:
        """Return `string` or `openai`, or nothing if a message's text doesn't get through.

        Raises:
            TemplateFailed: the template can't be used.
        """
        return str(self._ask({"template": template})["format"])

    def render(self, template: str, variables: dict[str, Any], continued: str | None = None) -> str:
        """Return a conversation as text. `continued`: the last message, after which it is cut.

        Raises:
            TemplateFailed: the template refuses, or takes too much time or memory.
        """
        task = {"template": template, "variables": variables, "continue": continued}
        return str(self._ask(task)["text"])

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            for pipe in (process.stdin, process.stdout):
                if pipe:
                    pipe.close()
            process.wait()

    def __enter__(self) -> TemplateRenderer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _ask(self, task: dict[str, Any]) -> dict[str, Any]:
        if len(task["template"]) > MAX_TEMPLATE_CHARACTERS:
            raise TemplateFailed(f"it has over {MAX_TEMPLATE_CHARACTERS:,} characters")
        line = json.dumps(task).encode() + b"\n"
        with self._lock:
            try:
                answer = self._exchange(line)
            except OSError:  # it was killed, perhaps for want of memory: once more
                self.close()
                answer = self._exchange(line)
        if "error" in answer:
            raise TemplateFailed(answer["error"])
        return answer

    def _exchange(self, line: bytes) -> dict[str, Any]:
        source, target = self._pipes()
        target.write(line)
        target.flush()
        if not (answer := source.readline()):
            raise BrokenPipeError("the process that renders chat templates ended")
        value: dict[str, Any] = json.loads(answer)
        return value

    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "adapters_registry.chat_templates.process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={},
            )
        assert self._process.stdout
        assert self._process.stdin
        return self._process.stdout, self._process.stdin
