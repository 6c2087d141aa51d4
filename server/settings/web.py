"""Settings of web pages: their access to the server, and the console."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import field_validator
from pydantic_settings import BaseSettings, NoDecode

from server.settings.fields import setting

_WEB_ORIGIN = re.compile(r"https?://[^/\s]+")


class WebSettings(BaseSettings):
    """Which web pages may call the server from a browser (CORS), and what the console shows."""

    cors_origins: Annotated[tuple[str, ...], NoDecode] = setting(
        (),
        "Server",
        "Origins of web pages that may call the server from a browser (CORS), separated by commas, "
        "such as https://app.example. `*` allows all. Default: none.",
    )
    cors_admin: bool = setting(
        False, "Server", "Let these origins call the routes below /admin, too."
    )

    console_secret_file: Path | None = setting(
        None,
        "Server",
        "File with a secret of at least 32 characters that signs the sessions of `/console`: the "
        "same for servers behind one address. Default: the first start makes one and writes it "
        "to console.secret in the data folder.",
    )

    machine_price: float | None = setting(
        None,
        "Server",
        "The price of an hour of the machine that a server runs on, with its GPUs. With it, the "
        "console shows admins each tenant's part of the machines' cost, and what dedicated "
        "deployments would cost. Default: the console shows no money.",
        gt=0,
    )
    currency: str = setting(
        "",
        "Server",
        "The currency of LORAPLEX_MACHINE_PRICE as the console shows it, such as EUR.",
        max_length=8,
    )

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _split_origins(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return tuple(origin.strip().rstrip("/") for origin in value.split(",") if origin.strip())

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if origin != "*" and not _WEB_ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin} is not an origin such as https://app.example")
        return value
