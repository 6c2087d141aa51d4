"""All settings together. `docs/settings.md` and `--help` print their descriptions."""

from __future__ import annotations

from pathlib import Path

from pydantic_settings import BaseSettings, SettingsConfigDict

from server.settings.adapters import AdapterSettings
from server.settings.base import BaseModelSettings
from server.settings.fields import PREFIX, setting
from server.settings.server import ServerSettings
from server.settings.web import WebSettings


class ClientSettings(BaseSettings):
    """Commands that talk to a server."""

    url: str = setting(
        "http://127.0.0.1:8000", "Client", "The server that client commands send requests to."
    )
    api_key: str | None = setting(
        None,
        "Client",
        "The API key that client commands send. Default: the admin key in the data folder.",
    )


class Settings(ClientSettings, WebSettings, ServerSettings, AdapterSettings, BaseModelSettings):
    """All settings. The name of a size or time ends with its unit.

    pydantic lists the fields of the last class first.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    @property
    def records_url(self) -> str:
        """Return the URL of the database, which may be the default."""
        return self.database_url or f"sqlite:///{self.data_dir / 'registry.db'}"

    @property
    def gpu_lora_tiles_file(self) -> Path:
        """Return the file with the table of tile sizes, which may be the default."""
        return self.gpu_lora_tiles or self.data_dir / "lora-tiles.json"

    @property
    def admin_key_path(self) -> Path:
        """Return the file with an admin key: the operator's, or that of the first start."""
        return self.admin_key_file or self.data_dir / "admin.key"
