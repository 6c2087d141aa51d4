"""As much of the GPU's 4-bit route as can be checked without one: what vLLM says it takes there."""

import pytest
import torch
from vllm.model_executor.layers.quantization import get_quantization_config
from vllm.model_executor.layers.quantization.utils import machete_utils, marlin_utils
from vllm.scalar_type import scalar_types

from server.engine.arguments import engine_arguments
from server.settings import Settings
from tests.server.engine.device.devices import H100
from training.quantization.w4a16 import GROUP_SIZES

AMPERE = 80


class Cuda:
    """A platform that is CUDA."""

    def is_cpu(self) -> bool:
        return False

    is_xpu = is_rocm = is_cpu


def test_marlin_and_machete_take_what_quantize_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(marlin_utils, "current_platform", Cuda())
    with_zero_points = marlin_utils.query_marlin_supported_quant_types(
        True, device_capability=AMPERE
    )
    assert scalar_types.uint4 in with_zero_points
    assert set(GROUP_SIZES) <= set(marlin_utils.MARLIN_SUPPORTED_GROUP_SIZES)
    assert scalar_types.uint4 in machete_utils.query_machete_supported_quant_types(True)
    by_machete = machete_utils.query_machete_supported_group_sizes(torch.bfloat16)
    assert set(GROUP_SIZES) - set(by_machete) == {32}


@pytest.mark.parametrize("method", ["compressed-tensors", "awq_marlin", "gptq_marlin"])
def test_the_setting_names_methods_that_vllm_runs_there(method: str) -> None:
    settings = Settings(quantization=method)
    assert engine_arguments(settings, "org/model", H100).quantization == method
    assert get_quantization_config(method).get_min_capability() <= AMPERE
