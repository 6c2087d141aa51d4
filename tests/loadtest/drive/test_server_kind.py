"""How other servers are asked for an adapter."""

from loadtest.drive.server_kind import Dialect, ServerKind


def test_llama_cpp_is_told_when_no_adapter_is_wanted() -> None:
    """An empty list would turn all of them on."""
    dialect = Dialect("base", ServerKind.LLAMA_CPP, {"first": 0, "second": 1})
    for model, lora in (("second", {"id": 1, "scale": 1.0}), ("base", {"id": 0, "scale": 0.0})):
        assert dialect.adapt({"model": model})["lora"] == [lora]
