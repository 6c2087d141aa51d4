"""`rank_pattern` and `alpha_pattern`: values by regular expressions on the names of modules.

The rule is PEFT's, which is vLLM's too: a pattern matches the end of a name from a dot on, and the
first one that matches wins. A tenant writes the patterns, and matching some of them takes longer
than anyone can wait. So a process with a limit on its time tries them before anything else does:
`python -m adapters_registry.check.module_patterns`.
"""

from __future__ import annotations

import json
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Collection, Mapping
from typing import Any

MAX_CHARACTERS = 500
"""The length of a pattern."""
MAX_EXPRESSIONS = 256
"""How many entries may be more than a module's name."""
CPU_SECONDS = 0.25
"""What matching all patterns with all modules of a base may take: the engine does it, too."""
MEMORY_BYTES = 256 << 20
"""What compiling them may take."""
WALL_SECONDS = 60

_NAME = re.compile(r"\w+|(?:[\w.]*\.)?layers\.\d+\.(?:self_attn|mlp)\.\w+", re.ASCII)
"""Patterns that mean just what they say. A dot in another one may stand for any character."""


class ModulePatterns:
    """Values by pattern. Patterns that `fault_of` refuses must not get here."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = list(values.values())
        self._names = {key: i for i, key in enumerate(values) if _NAME.fullmatch(key)}
        self._expressions = [
            (i, _compiled(key)) for i, key in enumerate(values) if not _is_name(key)
        ]

    def of(self, module: str) -> Any:
        """Return the value of the first pattern that matches a module, or None."""
        ends = [module, *(module[dot.end() :] for dot in re.finditer(r"\.", module))]
        first = min((self._names[end] for end in ends if end in self._names), default=None)
        for index, expression in self._expressions:
            if first is not None and index > first:
                break
            if expression.match(module):
                return self._values[index]
        return None if first is None else self._values[first]


def fault_of(patterns: Collection[str], modules: Collection[str]) -> str:
    """Return what is wrong with the patterns; nothing if they can be used on these modules.

    Raises:
        OSError: no process could be started, or the machine is too busy to say.
    """
    expressions = [pattern for pattern in patterns if not _is_name(pattern)]
    if not expressions:
        return ""
    if len(expressions) > MAX_EXPRESSIONS:
        return f"{len(expressions):,} regular expressions, and at most {MAX_EXPRESSIONS} are taken"
    for pattern in expressions:
        if len(pattern) > MAX_CHARACTERS:
            return f"{_shown(pattern)} has {len(pattern):,} characters, over {MAX_CHARACTERS}"
    task = json.dumps({"expressions": expressions, "modules": list(modules)})
    command = [sys.executable, "-m", "adapters_registry.check.module_patterns"]
    try:
        done = subprocess.run(
            command, input=task, capture_output=True, text=True, timeout=WALL_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise TimeoutError("no processor time to try an adapter's patterns") from None
    if done.returncode == 0:
        return ""
    *_, last = ["{}", *done.stdout.splitlines()]
    tried: dict[str, Any] = json.loads(last)
    pattern = _shown(expressions[tried.get("index", 0)])
    if "error" in tried:
        return f"{pattern} is no regular expression: {tried['error']}"
    return f"{pattern} takes too long to compare with the base's modules: write a simpler one"


def _is_name(pattern: str) -> bool:
    return _NAME.fullmatch(pattern) is not None


def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(.*\.)?({pattern})$")


def _shown(pattern: str) -> str:
    return repr(pattern[:80])


def main() -> int:
    """Try the expressions one by one, and say which one comes next; return the exit code.

    The kernel ends the process when its time is over, also in the middle of a match.
    """
    task = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + MEMORY_BYTES,) * 2)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    for index, pattern in enumerate(task["expressions"]):
        print(json.dumps({"index": index}), flush=True)
        try:
            expression = _compiled(pattern)
            for module in task["modules"]:
                expression.match(module)
        except (re.error, OverflowError, RecursionError) as error:
            print(json.dumps({"index": index, "error": str(error)}), flush=True)
            return 1
    return 0


def _address_space() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[0]) * resource.getpagesize()


if __name__ == "__main__":
    sys.exit(main())
