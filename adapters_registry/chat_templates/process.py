"""A process that renders chat templates: `python -m adapters_registry.chat_templates.process`.

It reads one line of JSON for each task and answers with one line. Each task is done by a forked
child with limits on its processor time, its memory and its whole time: a template may loop for ever
or multiply a string until memory is full, and nothing of Python's own ends that.

It ends when its input does, that is with the server.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import sys
from typing import Any

from adapters_registry.chat_templates import sandbox

CPU_SECONDS = 1
MEMORY_BYTES = 256 << 20
"""What a child may take beside what it inherits."""
WALL_SECONDS = 10.0
"""On a busy machine a child may take this long for its second of processor time."""

TOO_LONG = f"it takes over {CPU_SECONDS} s of processor time, or too much memory"


def do(task: dict[str, Any]) -> dict[str, Any]:
    """Do one task: find out how a template takes content, or render a conversation with it."""
    try:
        if "variables" not in task:
            return {"format": sandbox.content_format(task["template"])}
        written = sandbox.render(task["template"], task["variables"])
        if (last := task.get("continue")) is not None:
            written = sandbox.continue_message(written, last)
        return {"text": written}
    except sandbox.TemplateFailed as error:
        return {"error": str(error)}


def _child(task: dict[str, Any], out: int) -> None:
    """Do a task within the limits, and write its answer whole before the child ends with 0."""
    code = 1
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
        with open("/proc/self/statm") as statm:
            inherited = int(statm.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (inherited + MEMORY_BYTES,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        answer = json.dumps(do(task)).encode()
        with os.fdopen(out, "wb", closefd=False) as file:
            file.write(answer)
        code = 0
    finally:
        os._exit(code)


def _answer(task: dict[str, Any]) -> bytes:
    out = os.memfd_create("answer")
    try:
        if (pid := os.fork()) == 0:
            _child(task, out)
        child = os.pidfd_open(pid)
        if not select.select([child], [], [], WALL_SECONDS)[0]:
            os.kill(pid, signal.SIGKILL)
        os.close(child)
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0:
            return json.dumps({"error": TOO_LONG}).encode()
        size = os.lseek(out, 0, os.SEEK_END)
        os.lseek(out, 0, os.SEEK_SET)
        parts = []
        while size and (part := os.read(out, size)):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)
    finally:
        os.close(out)


def main() -> None:
    """Serve until the input ends."""
    for line in sys.stdin.buffer:
        sys.stdout.buffer.write(_answer(json.loads(line)) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
