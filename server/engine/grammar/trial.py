"""Finds out whether a grammar compiles, and in time, before the engine's own compiler gets it.

A new grammar is compiled in a process that can be killed (`process.py`), one at a time for each
tenant. Only a grammar that compiled in time reaches the engine. It is then remembered.

What xgrammar refuses is refused here. vLLM's own check lets it pass if another of its compilers
takes it, but an engine has one compiler only, which then fails.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import logging
import sys
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from server.engine.errors import NOT_COMPILED
from server.engine.errors import TOO_COMPLEX as TOO_COMPLEX_MESSAGE
from server.engine.grammar.process import REFUSED, TOO_COMPLEX, parse_grammar, reason_of
from server.errors import InvalidRequest, SchemaTooComplex, Unavailable

log = logging.getLogger(__name__)

CPU_SECONDS = 2.0
"""Processor time for one grammar. Afterwards the engine's compiler needs the same time again."""
WAIT_SECONDS = 30.0
"""How long a request waits for its tenant's other grammars, and for the process to start."""
MAX_TRIALS = 2
MAX_REMEMBERED = 1024
PLAIN_BYTES = 4096


class GrammarTrials:
    """Tries grammars for all tenants. The first grammar starts its process."""

    def __init__(
        self,
        tokenizer: Callable[[], str],
        cpu_seconds: float = CPU_SECONDS,
        wait_seconds: float = WAIT_SECONDS,
        *,
        refuses: bool = True,
    ) -> None:
        """`tokenizer` serialises the base's tokenizer for xgrammar. It is called in a thread.

        `refuses`: whether what xgrammar can't compile is refused. An engine that was told to use
        another compiler takes it perhaps.
        """
        self._tokenizer, self._cpu_seconds = tokenizer, cpu_seconds
        self._wait_seconds, self._refuses = wait_seconds, refuses
        self._known: OrderedDict[bytes, None] = OrderedDict()
        self._tenants: dict[str, asyncio.Lock] = {}
        self._slots = asyncio.Semaphore(MAX_TRIALS)
        self._starting = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._verdicts: dict[str, asyncio.Future[dict[str, str]]] = {}
        self._numbers = itertools.count()

    async def admit(self, tenant: str, kind: str, spec: str) -> None:
        """Return once it is known that a grammar compiles in time.

        Raises:
            InvalidRequest: the compiler refuses it.
            SchemaTooComplex: it takes too long, or too much memory.
            Unavailable: the tenant's other grammars took too long, or the process doesn't run.
        """
        key = hashlib.sha256(f"{kind}\0{spec}".encode(errors="replace")).digest()
        if key in self._known:
            self._known.move_to_end(key)
            return
        if is_plain(kind, spec):
            await asyncio.to_thread(self._parse, kind, spec)
            self._remember(key)
            return
        try:
            async with asyncio.timeout(self._wait_seconds), self._turn(tenant):
                found = await self._verdict(kind, spec)
        except (TimeoutError, OSError) as error:
            raise Unavailable("the grammar could not be checked in time; try again") from error
        if found["verdict"] == REFUSED and self._refuses:
            raise _refused(found["reason"])
        if found["verdict"] == TOO_COMPLEX:
            raise SchemaTooComplex(
                f"{TOO_COMPLEX_MESSAGE} more than {self._cpu_seconds:g} s of processor time, or "
                "too much memory, to compile; make it simpler"
            )
        self._remember(key)

    def _remember(self, key: bytes) -> None:
        self._known[key] = None
        if len(self._known) > MAX_REMEMBERED:
            self._known.popitem(last=False)

    def _parse(self, kind: str, spec: str) -> None:
        try:
            parse_grammar(kind, spec)
        except Exception as error:
            if self._refuses:
                raise _refused(reason_of(error)) from error

    def stop(self) -> None:
        """End the process and all trials."""
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()
        if self._reader is not None:
            self._reader.cancel()
        self._process = None

    @asynccontextmanager
    async def _turn(self, tenant: str) -> AsyncIterator[None]:
        lock = self._tenants.setdefault(tenant, asyncio.Lock())
        try:
            async with lock, self._slots:
                yield
        finally:
            if not lock.locked() and self._tenants.get(tenant) is lock:
                del self._tenants[tenant]

    async def _verdict(self, kind: str, spec: str) -> dict[str, str]:
        process = await self._started()
        assert process.stdin is not None
        name = str(next(self._numbers))
        verdict = self._verdicts[name] = asyncio.get_running_loop().create_future()
        task = {"id": name, "kind": kind, "spec": spec, "cpu_seconds": self._cpu_seconds}
        try:
            process.stdin.write(json.dumps(task).encode() + b"\n")
            await process.stdin.drain()
            found: dict[str, str] = await verdict
            return found
        finally:
            del self._verdicts[name]

    async def _started(self) -> asyncio.subprocess.Process:
        async with self._starting:
            if self._process is None or self._process.returncode is not None:
                tokenizer = await asyncio.to_thread(self._tokenizer)
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "server.engine.grammar.process",
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                )
                assert self._process.stdin is not None
                self._process.stdin.write(json.dumps(tokenizer).encode() + b"\n")
                self._reader = asyncio.create_task(self._read(self._process))
            return self._process

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        try:
            while line := await process.stdout.readline():
                answer = json.loads(line)
                waiting = self._verdicts.get(answer["id"])
                if waiting is not None and not waiting.done():
                    waiting.set_result(answer)
        finally:
            for waiting in self._verdicts.values():
                if not waiting.done():
                    waiting.set_exception(OSError("the process for grammars has ended"))


def _refused(reason: str) -> InvalidRequest:
    return InvalidRequest(f"{NOT_COMPILED}: {reason}")


def is_plain(kind: str, spec: str) -> bool:
    """Return True if a grammar is a short JSON schema that the compiler needn't unroll."""
    costly = ('"min', '"max', '"pattern', '"$ref', '"allOf', '"regex', '"grammar')
    return (
        kind in ("json", "structural_tag")
        and len(spec) <= PLAIN_BYTES
        and not any(word in spec for word in costly)
    )


def grammar_of(options: Any) -> tuple[str, str] | None:
    """Return the kind and text of the grammar in vLLM's `StructuredOutputsParams`, or None."""
    if options is None:
        return None
    from vllm.v1.structured_output.utils import choice_as_grammar, grammar_is_likely_lark

    for kind in ("json", "regex", "grammar", "structural_tag"):
        if (spec := getattr(options, kind, None)) is not None:
            if kind == "grammar" and grammar_is_likely_lark(spec):
                return "lark", spec
            return kind, spec if isinstance(spec, str) else json.dumps(spec)
    if choices := getattr(options, "choice", None):
        return "grammar", choice_as_grammar(choices)
    return None
