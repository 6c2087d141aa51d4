"""A repository on a Hugging Face hub, pinned to the commit that its revision means now.

The library reads endpoint and token from its own variables `HF_ENDPOINT` and `HF_TOKEN`.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapters_registry.content.adapter_files import (
    ADAPTER_FILES,
    CONFIG_FILE,
    SOURCE_FILES,
    WEIGHTS_FILE,
    left_out,
)
from adapters_registry.content.stopping import check_stop
from adapters_registry.errors import SourceRefused, StoreUnavailable
from adapters_registry.sources.source import PICKLE_FILE, MissingFile, Source, missing_file

if TYPE_CHECKING:
    from huggingface_hub import HfFileMetadata

HUB_SCHEME = "hf://"
_MAX_LISTED = 1000
"""How many files of a repository are looked at for what is said about it."""

_PART = r"(?!\.{1,2}(?:[/@]|$))[\w.-]+"
_SOURCE = re.compile(
    rf"hf://(?P<repo>{_PART}/{_PART})(?P<folder>(?:/{_PART})*)/?(?:@(?P<revision>[\w./-]+))?",
    re.ASCII,
)
_FORM = "is not of the form hf://org/repo@revision or hf://org/repo/folder@revision"


def find_on_hub(source: str, endpoint: str | None = None) -> Source:
    """Find the adapter at `hf://org/repo@revision`, without reading it yet.

    It may stand in a folder: `hf://org/repo/folder@revision`. The revision is `main` if none is
    named.

    Raises:
        SourceRefused: it does not exist, this server's token may not read it, or the source is not
            of this form.
        StoreUnavailable: the hub cannot be reached.
    """
    from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.hf_api import RepoFile

    match = _SOURCE.fullmatch(source)
    if not match:
        raise SourceRefused(f"{source[:200]!r} {_FORM}")
    repo, commit = match["repo"], match["revision"] or "main"
    folder = match["folder"]
    below = f"{folder}/".lstrip("/")

    def find(name: str) -> HfFileMetadata:
        with _errors(source, name):
            url = hf_hub_url(repo, below + name, revision=commit, endpoint=endpoint)
            return get_hf_file_metadata(url)

    def listed(*, recursive: bool = False) -> list[str]:
        """Return the paths of the files in the folder, from there on."""
        with suppress(SourceRefused, StoreUnavailable), _errors(source, ""):
            place, hub = below.rstrip("/") or None, HfApi(endpoint=endpoint)
            tree = hub.list_repo_tree(repo, place, revision=commit, recursive=recursive)
            files = [e.path for e in islice(tree, _MAX_LISTED) if isinstance(e, RepoFile)]
            return [path.removeprefix(below) for path in files]
        return []  # nothing is fetched less for it

    def adapters_below() -> list[str]:
        at = f"@{match['revision']}" if match["revision"] else ""
        ending = f"/{CONFIG_FILE}"
        found = [path for path in listed(recursive=True) if path.endswith(ending)]
        found.sort(key=lambda path: (len(path), path))  # checkpoint-500 before -1000
        return [f"{HUB_SCHEME}{repo}{folder}/{path.removesuffix(ending)}{at}" for path in found]

    def has(name: str) -> bool:
        try:
            return bool(find(name))
        except MissingFile:
            return False

    sizes: dict[str, int] = {}
    for name in SOURCE_FILES:
        try:
            file = find(name)
        except MissingFile:
            if name in ADAPTER_FILES:
                has_pickle = name == WEIGHTS_FILE and has(PICKLE_FILE)
                folders = adapters_below() if name == CONFIG_FILE else ()
                raise missing_file(name, has_pickle=has_pickle, folders=folders) from None
            continue
        if file.commit_hash is None or file.size is None:
            raise StoreUnavailable(
                f"{source}: the hub doesn't say which commit it is, or how large"
            )
        # The other files are those of the first one's commit, whatever is pushed between.
        commit, sizes[name] = file.commit_hash, file.size

    def stage(staged: Path) -> None:
        scratch = staged / "hub"
        for name, size_bytes in sizes.items():
            with _errors(source, name):
                file = below + name
                hf_hub_download(
                    repo,
                    file,
                    revision=commit,
                    local_dir=scratch,
                    endpoint=endpoint,
                    tqdm_class=_progress(),
                )
            if (scratch / file).stat().st_size != size_bytes:
                raise StoreUnavailable(f"{name} of {source} came incomplete: try again")
            (scratch / file).rename(staged / name)
        shutil.rmtree(scratch)

    name = f"{HUB_SCHEME}{repo}{folder}@{commit}"
    return Source(name, sum(sizes.values()), stage, left_out(listed()))


@contextmanager
def _errors(source: str, name: str) -> Iterator[None]:
    """Turn the library's errors into ours, with what to do."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise SourceRefused(
            f"{source} is gated: accept its terms on the hub, and set HF_TOKEN on the server"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise SourceRefused(
            f"{source}: no such repository, or a private one: check the name, and HF_TOKEN on the "
            "server"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise SourceRefused(f"{source}: the repository has no such revision") from error
    except errors.RemoteEntryNotFoundError as error:
        raise missing_file(name) from error
    except errors.HFValidationError as error:
        raise SourceRefused(f"{source[:200]!r} {_FORM}") from error
    except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, errors.HTTPError) as error:  # type: ignore[attr-defined]
        raise StoreUnavailable(_why(source, error)) from error
    except OSError as error:
        if error.errno is not None:  # ours: the disk's
            raise
        raise StoreUnavailable(_why(source, error)) from error


def _progress() -> type[Any]:
    """A progress bar that shows nothing, and ends a download for which nobody waits any more.

    The library updates it after each part of a file.
    """
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    class StoppingBar(tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> bool | None:
            check_stop()
            return super().update(n)  # type: ignore[no-any-return]

    return StoppingBar


def _why(source: str, error: Exception) -> str:
    from huggingface_hub.constants import ENDPOINT, is_offline_mode

    if is_offline_mode():
        return f"{source} can't be fetched: HF_HUB_OFFLINE is set; unset it, or upload the files"
    return (
        f"{source} can't be fetched from {ENDPOINT} ({type(error.__cause__ or error).__name__}): "
        "check the connection and HF_ENDPOINT on the server, or upload the files"
    )
