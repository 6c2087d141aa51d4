"""New grammars are compiled in a process that can be ended, on a tokenizer of a few letters."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest
import pytest_asyncio
import xgrammar

from server.engine.grammar import trial
from server.engine.grammar.trial import GrammarTrials, grammar_of, is_plain
from server.errors import InvalidRequest, SchemaTooComplex

COSTLY = {
    "type": "object",
    "properties": {
        f"p{i}": {"type": "string", "minLength": 1, "maxLength": 200_000 + i} for i in range(100)
    },
    "required": [f"p{i}" for i in range(100)],
}


def tokenizer() -> str:
    letters = [chr(code) for code in range(32, 127)]
    words = [a + b for a in letters for b in letters]
    info = xgrammar.TokenizerInfo([*letters, *words, "</s>"], stop_token_ids=[len(letters + words)])
    return str(info.serialize_json())


def make_trials() -> GrammarTrials:
    return GrammarTrials(tokenizer, cpu_seconds=1, wait_seconds=120)  # the machine may be busy


@pytest_asyncio.fixture
async def trials() -> AsyncIterator[GrammarTrials]:
    trials = make_trials()
    yield trials
    trials.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared() -> AsyncIterator[GrammarTrials]:
    """Trials whose process, which takes seconds to start, several tests share."""
    trials = make_trials()
    yield trials
    trials.stop()


async def test_what_compiles_in_time_passes_and_what_does_not_is_ended(
    trials: GrammarTrials,
) -> None:
    await trials.admit("acme", "regex", "[a-z]{1,8}")
    await trials.admit("acme", "json", json.dumps({"type": "string", "maxLength": 10}))
    with pytest.raises(SchemaTooComplex) as caught:
        await trials.admit("acme", "json", json.dumps(COSTLY))
    assert caught.value.code == "schema_too_complex"
    await trials.admit("acme", "grammar", 'root ::= "a"')  # the next one isn't hurt
    trials.stop()
    await trials.admit("acme", "regex", "[a-z]{1,8}")  # is remembered, and starts no process
    assert trials._process is None


REFUSED = [
    ("grammar", "root ::="),
    ("grammar", 'other ::= "a"'),
    ("lark", "start: ("),
    ("regex", "("),
    ("regex", "(?<=a)b"),
    ("json", '{"type": "object", "properties": 1}'),
    ("json", '{"type": "nothing"}'),
    ("json", '{"type": "string", "pattern": "("}'),
    ("json", '{"$ref": "#/nowhere"}'),
    ("json", "not JSON"),
    ("structural_tag", '{"type": "structural_tag", "format": {"type": "nothing"}}'),
    ("structural_tag", '{"structures": [{"begin": "<a>"}], "triggers": ["<a"]}'),
]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("kind", "spec"), REFUSED)
async def test_what_the_compiler_refuses_is_refused_with_its_reason(
    shared: GrammarTrials, kind: str, spec: str
) -> None:
    """vLLM would let some of these pass, as another of its compilers takes them."""
    with pytest.raises(InvalidRequest, match=r"^the grammar can't be compiled: .{3}"):
        await shared.admit("acme", kind, spec)


async def test_an_engine_with_another_compiler_decides_itself() -> None:
    trials = GrammarTrials(tokenizer, cpu_seconds=1, wait_seconds=120, refuses=False)
    try:
        await trials.admit("acme", "grammar", "root ::=")
        await trials.admit("acme", "json", '{"type": "nothing"}')
    finally:
        trials.stop()


@pytest.mark.asyncio(loop_scope="module")
async def test_a_grammar_in_larks_syntax_is_compiled_as_one(shared: GrammarTrials) -> None:
    kind, spec = grammar_of(SimpleNamespace(grammar='start: "a" | "b"')) or ("", "")
    assert kind == "lark"
    await shared.admit("acme", kind, spec)


async def test_a_tenant_has_one_trial_at_a_time(trials: GrammarTrials) -> None:
    running, most = 0, 0

    async def verdict(kind: str, spec: str) -> dict[str, str]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        return {"verdict": "ok"}

    trials._verdict = verdict  # type: ignore[method-assign]
    await asyncio.gather(*(trials.admit("acme", "regex", f"a{i}") for i in range(5)))
    assert most == 1
    assert not trials._tenants
    await asyncio.gather(*(trials.admit(f"t{i}", "regex", f"b{i}") for i in range(5)))
    assert most == trial.MAX_TRIALS


def test_only_short_schemas_without_repetitions_are_plain() -> None:
    assert is_plain("json", '{"type": "object", "properties": {"a": {"type": "string"}}}')
    assert not is_plain("json", '{"type": "string", "maxLength": 9}')
    assert not is_plain("json", json.dumps({"enum": ["x" * 5000]}))
    assert not is_plain("regex", "a")
