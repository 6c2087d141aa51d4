"""A model into which one version of an adapter was merged, for a server of that version alone.

Its directory is a model like any other. A file beside the weights names the version, and the base
that it was checked on. The adapter's companion files, such as its chat template, lie in a folder.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

RECORD_FILE = "dedicated.json"
COMPANIONS_FOLDER = "adapter"


@dataclass(frozen=True)
class MergedVersion:
    """The version that a merged model holds."""

    tenant: str
    name: str
    version: int
    digest: str
    base: str
    """The name of the base, as the registry's servers know it."""
    base_fingerprint: str

    @property
    def adapter_id(self) -> str:
        """`tenant/name`."""
        return f"{self.tenant}/{self.name}"

    @property
    def public_name(self) -> str:
        """`tenant/name@3`."""
        return f"{self.adapter_id}@{self.version}"

    @classmethod
    def of(cls, model: Path) -> MergedVersion | None:
        """Read which version a model directory holds. Returns None if it is an ordinary model.

        Raises:
            ValueError: the file that names the version can't be read.
        """
        file = model / RECORD_FILE
        if not file.is_file():
            return None
        try:
            said = json.loads(file.read_text(encoding="utf-8"))
            known = cls(**{field.name: said[field.name] for field in fields(cls)})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file} doesn't name a version: {error!r}") from error
        return known

    def write(self, model: Path) -> None:
        """Write into a model directory which version it holds."""
        (model / RECORD_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n")
