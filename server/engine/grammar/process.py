"""The process that tries grammars: `python -m server.engine.grammar.process`.

It reads one line of JSON for each grammar and forks a child that compiles it, with limits on its
processor time, its memory and its total time. Such a child can be killed, while a thread of the
engine's compiler can't. The first line of the input is the tokenizer, as xgrammar serialises it.

The process ends when its input ends, and so when the server ends.
"""

from __future__ import annotations

import json
import os
import re
import resource
import select
import signal
import sys
import time
from typing import Any

MEMORY_BYTES = 1 << 30
"""Memory that a child may take in addition to what it inherits."""
WALL_FACTOR = 10
"""Total time that a child may take, as a multiple of its processor time: machines are busy."""

OK, REFUSED, TOO_COMPLEX = "ok", "refused", "too complex"
_OK_CODE, _TOLD_CODE = 0, 3
"""Exit codes of a child: its grammar compiled, or it has printed the verdict itself."""
MAX_REASON = 300


def parse_grammar(kind: str, spec: str) -> None:
    """Parse a JSON schema or a structural tag, without compiling it. Raises xgrammar's errors."""
    import xgrammar

    if kind == "json":
        xgrammar.Grammar.from_json_schema(spec)
    else:
        xgrammar.Grammar.from_structural_tag(*_structural_tag(spec))


def reason_of(error: Exception) -> str:
    """Return the first line of what xgrammar says, without the place in its source."""
    lines = (str(error) or repr(error)).splitlines()
    return re.sub(r"^\[[^\]]*\] \S+: ", "", lines[0])[:MAX_REASON]


def _structural_tag(spec: str) -> tuple[Any, ...]:
    """Return the arguments by which xgrammar takes a structural tag, of either form."""
    import xgrammar

    tag = json.loads(spec)
    if "structures" not in tag:
        return (spec,)
    items = [
        xgrammar.StructuralTagItem(begin=s["begin"], schema=json.dumps(s["schema"]), end=s["end"])
        for s in tag["structures"]
    ]
    return items, tag["triggers"]


def compile_grammar(tokenizer: Any, kind: str, spec: str) -> None:
    """Compile one grammar as vLLM's backend does. xgrammar's errors are passed on."""
    import xgrammar

    compiler = xgrammar.GrammarCompiler(tokenizer, max_threads=1, cache_enabled=False)
    match kind:
        case "json":
            compiler.compile_json_schema(spec)
        case "regex":
            compiler.compile_regex(spec)
        case "structural_tag":
            compiler.compile_structural_tag(*_structural_tag(spec))
        case "lark":
            compiler.compile_lark(spec)
        case _:
            compiler.compile_grammar(spec)


def _child(tokenizer: Any, task: dict[str, Any]) -> None:
    """Compile within the limits, then exit. A refusal is printed with its reason."""
    code = 1
    try:
        seconds = max(1, round(task["cpu_seconds"]))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        with open("/proc/self/statm") as statm:
            inherited = int(statm.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (inherited + MEMORY_BYTES,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.nice(10)  # the engine comes first
        compile_grammar(tokenizer, task["kind"], task["spec"])
        code = _OK_CODE
    except MemoryError:
        code = 2
    except Exception as error:
        told = {"id": task["id"], "verdict": REFUSED, "reason": reason_of(error)}
        os.write(sys.stdout.fileno(), json.dumps(told).encode() + b"\n")  # in one piece
        code = _TOLD_CODE
    finally:
        os._exit(code)


def main() -> None:
    """Read tasks and print verdicts until the input ends."""
    import xgrammar

    source, rest, tokenizer = sys.stdin.fileno(), b"", None
    running: dict[int, tuple[int, str, float]] = {}  # pidfd: pid, task, deadline
    while True:
        ready, _, _ = select.select([source, *running], [], [], 0.5 if running else None)
        for pidfd in [each for each in ready if each != source]:
            pid, name, _ = running.pop(pidfd)
            os.close(pidfd)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            if code != _TOLD_CODE:
                verdict = OK if code == _OK_CODE else TOO_COMPLEX
                print(json.dumps({"id": name, "verdict": verdict}), flush=True)
        for pid, _, deadline in running.values():
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
        if source not in ready:
            continue
        if not (read := os.read(source, 1 << 20)):
            return
        *lines, rest = (rest + read).split(b"\n")
        for line in lines:
            if tokenizer is None:
                tokenizer = xgrammar.TokenizerInfo.deserialize_json(json.loads(line))
                continue
            task = json.loads(line)
            if (pid := os.fork()) == 0:
                _child(tokenizer, task)
            deadline = time.monotonic() + WALL_FACTOR * task["cpu_seconds"]
            running[os.pidfd_open(pid)] = pid, task["id"], deadline


if __name__ == "__main__":
    main()
