import pytest

from server.engine.device.memory import UTILIZATION, EngineOptions


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), EngineOptions(1, UTILIZATION, None)),
        (("--tensor-parallel-size", "4", "--seed", "1"), EngineOptions(4, UTILIZATION, None)),
        (("-tp", "2", "--pipeline_parallel_size=2"), EngineOptions(4, UTILIZATION, None)),
        (("--gpu_memory_utilization", "0.5"), EngineOptions(1, 0.5, None)),
        (("--max-num-batched-tokens=512",), EngineOptions(1, UTILIZATION, 512)),
        (("--tensor-parallel-size", "many"), EngineOptions(1, UTILIZATION, None)),
        (("--tensor-parallel-size",), EngineOptions(1, UTILIZATION, None)),
    ],
)
def test_vllms_own_options_are_read(arguments: tuple[str, ...], expected: EngineOptions) -> None:
    assert EngineOptions.of(arguments) == expected
