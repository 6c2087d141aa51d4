import os
import subprocess
import sys
from collections.abc import Iterator
from contextvars import copy_context
from pathlib import Path
from threading import Event

import pytest

from adapters_registry.content.adapter_files import (
    ADAPTER_FILES,
    CONFIG_FILE,
    SOURCE_FILES,
    WEIGHTS_FILE,
)
from adapters_registry.content.stopping import GivenUp, stop_flag
from adapters_registry.errors import SourceRefused, StoreUnavailable
from adapters_registry.sources.hub import find_on_hub
from adapters_registry.sources.source import PICKLE_FILE
from tests.hub_server import HubServer
from tests.tiny import AdapterFactory

REPO = "acme/smart-home"


@pytest.fixture
def hub() -> Iterator[HubServer]:
    server = HubServer()
    yield server
    server.stop()


@pytest.fixture
def staged(tmp_path: Path) -> Path:
    directory = tmp_path / "staged"
    directory.mkdir()
    return directory


def files_of(adapter: Path) -> dict[str, bytes]:
    return {name: (adapter / name).read_bytes() for name in ADAPTER_FILES}


def reads_nothing(request: str) -> bool:
    return request.startswith(("HEAD ", "GET /api/"))


def test_a_branch_is_pinned_to_its_commit(
    hub: HubServer, make_adapter: AdapterFactory, staged: Path
) -> None:
    files = files_of(make_adapter(seed=1))
    commit = hub.push(REPO, files | {"README.md": b"#", "pytorch_model.bin": b"pickle"})
    hub.push(REPO, files_of(make_adapter(seed=2)), branch="next")
    found = find_on_hub(f"hf://{REPO}", hub.endpoint)
    assert found.name == f"hf://{REPO}@{commit}"
    assert found.size_bytes == sum(map(len, files.values()))
    assert all(map(reads_nothing, hub.requests)), "nothing is read yet"
    hub.push(REPO, files_of(make_adapter(seed=3)))
    found.stage(staged)
    assert files_of(staged) == files
    assert sorted(file.name for file in staged.iterdir()) == sorted(ADAPTER_FILES)
    assert found.left_out == ("pytorch_model.bin",)
    asked = {request.rsplit("/", 1)[1] for request in hub.requests if "/api/" not in request}
    assert asked == set(SOURCE_FILES), "no other file is asked for"


@pytest.mark.parametrize("by", ["tag", "commit", "refs/pr/1"])
def test_revisions(hub: HubServer, make_adapter: AdapterFactory, by: str) -> None:
    commit = hub.push(REPO, files_of(make_adapter()), branch="v2")
    hub.revisions[REPO, "refs%2Fpr%2F1"] = commit
    revision = {"tag": "v2", "commit": commit}.get(by, by)
    assert find_on_hub(f"hf://{REPO}@{revision}", hub.endpoint).name == f"hf://{REPO}@{commit}"


def test_a_push_between_the_two_files(
    hub: HubServer, make_adapter: AdapterFactory, staged: Path
) -> None:
    old = files_of(make_adapter(seed=1, config={"lora_alpha": 8}))
    hub.push(REPO, old)
    pushed: list[str] = []

    def push_after_the_first(request: str) -> None:
        if WEIGHTS_FILE in request and not pushed:
            pushed.append(hub.push(REPO, files_of(make_adapter(seed=2))))

    hub.before_answer = push_after_the_first
    find_on_hub(f"hf://{REPO}@main", hub.endpoint).stage(staged)
    assert files_of(staged) == old


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("hf://acme/unknown", "no such repository, or a private one"),
        (f"hf://{REPO}@v9", "no such revision"),
        ("hf://acme/gated", "accept its terms"),
        ("hf://acme/half", f"{WEIGHTS_FILE} is missing"),
        ("hf://acme", "is not of the form hf://org/repo@revision"),
        ("hf://acme/../../etc", "is not of the form hf://org/repo@revision"),
        ("hf://../smart-home", "is not of the form hf://org/repo@revision"),
        (f"hf://{REPO}/../{CONFIG_FILE}", "is not of the form hf://org/repo@revision"),
        (f"hf://{REPO}/a//b", "is not of the form hf://org/repo@revision"),
        (f"hf://{REPO}/no/folder", f"{CONFIG_FILE} is missing"),
        ("hf://acme/pickled", "converts it: python -c"),
        ("hf://acme/smart-home@main?x=1", "is not of the form hf://org/repo@revision"),
        ("hf://аcme/smart-home", "is not of the form hf://org/repo@revision"),  # a Cyrillic a
    ],
)
def test_refused(hub: HubServer, make_adapter: AdapterFactory, source: str, why: str) -> None:
    files = files_of(make_adapter())
    hub.push(REPO, files)
    hub.push("acme/gated", files)
    hub.gated.add("acme/gated")
    hub.push("acme/half", {CONFIG_FILE: files[CONFIG_FILE]})
    hub.push("acme/pickled", {CONFIG_FILE: files[CONFIG_FILE], PICKLE_FILE: b"pickle"})
    with pytest.raises(SourceRefused, match=why):
        find_on_hub(source, hub.endpoint)


@pytest.mark.parametrize("ending", ["", "/"])
def test_a_folder(hub: HubServer, make_adapter: AdapterFactory, staged: Path, ending: str) -> None:
    files = files_of(make_adapter(seed=1))
    below = {f"adapters/v2.0/{name}": content for name, content in files.items()}
    commit = hub.push(REPO, files_of(make_adapter(seed=2)) | below)
    found = find_on_hub(f"hf://{REPO}/adapters/v2.0{ending}@main", hub.endpoint)
    assert found.name == f"hf://{REPO}/adapters/v2.0@{commit}"
    found.stage(staged)
    assert files_of(staged) == files
    assert sorted(file.name for file in staged.iterdir()) == sorted(ADAPTER_FILES)


@pytest.mark.parametrize("folder", ["", "/runs"])
@pytest.mark.parametrize("at", ["", "@main"])
def test_a_folder_without_an_adapter_names_those_below_that_have_one(
    hub: HubServer, make_adapter: AdapterFactory, folder: str, at: str
) -> None:
    files = files_of(make_adapter())
    below = {
        f"runs/{place}/{name}": content
        for place in ("checkpoint-1000", "checkpoint-500")
        for name, content in files.items()
    }
    hub.push(REPO, {"README.md": b"#"} | below)
    with pytest.raises(SourceRefused) as caught:
        find_on_hub(f"hf://{REPO}{folder}{at}", hub.endpoint)
    first, second = (f"hf://{REPO}/runs/checkpoint-{step}{at}" for step in (500, 1000))
    assert str(caught.value) == f"{CONFIG_FILE} is missing: did you mean {first} or {second}?"


def test_the_size_is_known_before_anything_is_read(
    hub: HubServer, make_adapter: AdapterFactory
) -> None:
    hub.push(REPO, files_of(make_adapter()))
    hub.claimed_sizes[WEIGHTS_FILE] = 100 << 30
    with pytest.raises(SourceRefused, match="over the limit"):
        find_on_hub(f"hf://{REPO}", hub.endpoint).limited(1 << 30)
    assert all(map(reads_nothing, hub.requests))


def test_a_file_that_comes_incomplete(
    hub: HubServer, make_adapter: AdapterFactory, staged: Path
) -> None:
    hub.push(REPO, files_of(make_adapter()))
    hub.claimed_sizes[WEIGHTS_FILE] = 123
    with pytest.raises(StoreUnavailable):
        find_on_hub(f"hf://{REPO}", hub.endpoint).stage(staged)


def run(code: str, **environment: str) -> str:
    """Run code in a new interpreter: the hub's library reads its environment at import."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))}
    result = subprocess.run(
        [sys.executable, "-c", code], env=inherited | environment, capture_output=True, text=True
    )
    return result.stdout + result.stderr


ASK = """
from adapters_registry.sources.hub import find_on_hub
try:
    print(find_on_hub("hf://acme/smart-home").name)
except Exception as error:
    print(type(error).__name__, error)
"""


def test_offline_errors_say_what_to_do() -> None:
    unreachable = run(ASK, HF_ENDPOINT="http://127.0.0.1:9")
    assert "StoreUnavailable hf://acme/smart-home can't be fetched from http://127.0.0.1:9" in (
        unreachable
    )
    assert "check the connection and HF_ENDPOINT on the server, or upload the files" in unreachable
    offline = run(ASK, HF_HUB_OFFLINE="1")
    assert "StoreUnavailable" in offline
    assert "HF_HUB_OFFLINE is set; unset it, or upload the files" in offline


def test_the_environment_names_the_hub(hub: HubServer, make_adapter: AdapterFactory) -> None:
    commit = hub.push(REPO, files_of(make_adapter()))
    assert run(ASK, HF_ENDPOINT=hub.endpoint).strip() == f"hf://{REPO}@{commit}"


def test_a_base_on_disk_keeps_the_engine_offline_and_not_registrations(
    hub: HubServer, make_adapter: AdapterFactory, tmp_path: Path
) -> None:
    commit = hub.push(REPO, files_of(make_adapter()))
    prepare = f"""
import os
from pathlib import Path
from threading import Event
from server.engine.environment import prepare_environment
prepare_environment({str(tmp_path)!r}, "info", "grouped", Path("var"))
print(os.environ["HF_HUB_OFFLINE"])
"""
    assert run(prepare + ASK, HF_ENDPOINT=hub.endpoint).split() == ["1", f"hf://{REPO}@{commit}"]
    assert "HF_HUB_OFFLINE is set" in run(
        prepare + ASK, HF_ENDPOINT=hub.endpoint, HF_HUB_OFFLINE="1"
    )


def test_a_download_that_is_given_up_ends(
    hub: HubServer, make_adapter: AdapterFactory, staged: Path
) -> None:
    hub.push(REPO, files_of(make_adapter()))
    found, flag, context = find_on_hub(f"hf://{REPO}", hub.endpoint), Event(), copy_context()
    context.run(stop_flag.set, flag)
    hub.before_answer = lambda request: flag.set() if WEIGHTS_FILE in request else None
    with pytest.raises(GivenUp):
        context.run(found.stage, staged)
    assert not (staged / WEIGHTS_FILE).exists()
