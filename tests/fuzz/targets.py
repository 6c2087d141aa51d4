"""Functions that read bytes from strangers, with what must hold whatever the bytes are.

Each target takes bytes and raises only if there is a mistake in the program. `test_corpus.py`
replays the kept inputs, and `make fuzz` looks for new ones, guided by coverage.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from adapters_registry.check.base import BaseSpec
from adapters_registry.check.static_check import check_adapter
from adapters_registry.check.weights import read_header, read_metadata
from adapters_registry.content.adapter_files import CONFIG_FILE, WEIGHTS_FILE
from adapters_registry.errors import AdapterRejected, Reason
from adapters_registry.names import LIVE
from adapters_registry.records.catalog import (
    AdapterRecord,
    AliasRecord,
    Catalog,
    Target,
    VersionRecord,
)
from adapters_registry.records.tables import VersionState, now
from loadtest.outcome.streams import Events, Reading, StreamBroken
from server.api.resolve import may_use, resolve
from server.auth import Caller
from server.errors import APIError, ModelIncompatible, ModelNotFound
from tests.adapter_recipe import Recipe
from tests.fuzz.forms import multipart
from tests.tiny import TINY_BASE

BASE_NAME = "base"
MOST_CHARACTERS = 1000
"""The longest message of an error."""
TINY = BaseSpec.from_config("tiny", TINY_BASE, max_rank=8)
INFERENCE = frozenset({"inference"})
CALLERS = (
    Caller("acme", INFERENCE, tenant_id="1"),
    Caller("other", INFERENCE, tenant_id="2"),
    Caller("third", INFERENCE, tenant_id="3"),
    Caller("third", frozenset({"inference", "admin"}), tenant_id="3"),
)


def _version(name: str, number: int, state: VersionState) -> VersionRecord:
    return VersionRecord(
        tenant="acme",
        name=name,
        number=number,
        digest=f"{number:x}" * 64,
        version_id=number,
        state=state,
        rank=8,
        size_bytes=1,
        reasons=[{"message": "another base"}],
        source="",
        metadata={},
        created_at=now(),
    )


def _adapter(name: str, shared_with_ids: frozenset[str]) -> AdapterRecord:
    states = (VersionState.READY, VersionState.READY, VersionState.INCOMPATIBLE)
    versions = {n: _version(name, n, state) for n, state in enumerate(states, 1)}
    aliases = {
        LIVE: AliasRecord((Target(2, 10), Target(1, 90))),
        "next": AliasRecord((Target(3, 100),)),
        "gone": AliasRecord((Target(9, 100),)),
    }
    return AdapterRecord(
        "acme", name, now(), versions, aliases, shared_with_ids=shared_with_ids, num_versions=3
    )


CATALOG = Catalog(
    {
        ("acme", "own"): _adapter("own", frozenset()),
        ("acme", "shared"): _adapter("shared", frozenset({"2"})),
    }
)


def _safetensors_of(data: bytes) -> bytes:
    """Return the file that an input stands for.

    After an odd first byte, header and values follow, with two NUL bytes between them, and the file
    gets the header's true length. A mutation would hardly ever find that. Otherwise the rest of the
    input is the file itself.
    """
    if not data or data[0] % 2 == 0:
        return data[1:]
    header, _, values = data[1:].partition(b"\0\0")
    return len(header).to_bytes(8, "little") + header + values


def safetensors_header(data: bytes) -> None:
    """A file is refused with `ValueError`, or each tensor lies within it and can be read."""
    data = _safetensors_of(data)
    with tempfile.TemporaryDirectory(prefix="loraplex-fuzz-") as folder:
        file = Path(folder, WEIGHTS_FILE)
        file.write_bytes(data)
        try:
            tensors = read_header(file)
            read_metadata(file)
        except ValueError:
            return
        for tensor in tensors.values():
            assert tensor.offset >= 8
            assert tensor.offset + tensor.num_bytes <= len(data)
            if tensor.is_float:
                assert tensor.load().shape == tensor.shape


def adapter_config(data: bytes) -> None:
    """A configuration is accepted, or refused with reasons that can be sent as JSON."""
    with tempfile.TemporaryDirectory(prefix="loraplex-fuzz-") as folder:
        directory = Recipe().make(Path(folder, "adapter"), TINY)
        (directory / CONFIG_FILE).write_bytes(data)
        reasons = _reasons(directory)
        assert reasons is None or reasons
        for reason in reasons or ():
            assert reason.message.encode()


def _reasons(directory: Path) -> list[Reason] | None:
    """Return why an adapter is refused, or None if it is accepted."""
    try:
        check_adapter(directory, TINY)
    except AdapterRejected as rejection:
        return rejection.reasons
    return None


def model_string(data: bytes) -> None:
    """A name gives the base, a version that the caller may use, or the error for its absence."""
    caller = CALLERS[data[0] % len(CALLERS)] if data else CALLERS[0]
    conversation, _, model = data[1:].decode(errors="ignore").partition("\n")
    found = _resolved(model, caller, conversation or None)
    if isinstance(found, APIError):
        assert found.message.encode()
        assert len(found.message) <= MOST_CHARACTERS
    elif found is None:
        assert model == BASE_NAME
    else:
        assert found.state is VersionState.READY
        assert may_use(caller, CATALOG.adapters["acme", found.name])
        if conversation:
            assert _resolved(model, caller, conversation) is found


def _resolved(
    model: str, caller: Caller, conversation: str | None
) -> VersionRecord | APIError | None:
    """Return the version, None for the base, or the error that the client gets."""
    try:
        return resolve(model, caller, CATALOG, BASE_NAME, conversation)
    except (ModelNotFound, ModelIncompatible) as error:
        return error


def event_stream(data: bytes) -> None:
    """A stream gives the same events however it is cut, and only whole answers are read."""
    step = data[0] % 16 + 1 if data else 1
    body = data[1:]
    whole = _events([body])
    assert whole == _events(body[i : i + step] for i in range(0, len(body), step))
    reading = Reading()
    with suppress(StreamBroken):
        for event in whole or ():
            reading.take(event)
    assert type("".join(reading.text)) is str
    assert all(type(each) is int for each in reading.token_ids)
    assert all(type(token.logprob) is float for token in reading.tokens)


def _events(chunks: Iterable[bytes]) -> list[bytes] | None:
    """Return the events of a stream, or None if it is broken."""
    events, found = Events(), []
    try:
        for chunk in chunks:
            found += events.feed(chunk)
    except StreamBroken:
        return None
    return found


TARGETS: Mapping[str, Callable[[bytes], None]] = {
    "safetensors-header": safetensors_header,
    "adapter-config": adapter_config,
    "model-string": model_string,
    "event-stream": event_stream,
    "multipart": multipart,
}
