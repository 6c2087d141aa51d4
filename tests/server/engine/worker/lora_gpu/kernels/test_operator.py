"""The operator as PyTorch sees it: its schema, fake tensors, a compiled caller."""

import torch

from tests.server.engine.worker.lora_gpu.kernels.layers import (
    BASE,
    Layer,
    make_wrapper,
    random,
    take,
)


def test_opcheck() -> None:
    layer, wrapper = Layer(64, (32, 32), max_rank=16), make_wrapper()
    layer.write(1, 16, 8)
    take(wrapper, [1, BASE, 1])
    meta = wrapper.token_mapping_meta
    arguments = (
        random(3, 64), random(3, 64), list(layer.a), list(layer.b), wrapper.tiles,
        meta.token_lora_mapping, meta.token_indices_sorted_by_lora_ids, meta.num_tokens_per_lora,
        meta.lora_token_start_loc, meta.active_lora_ids, meta.no_lora_flag_cpu,
        meta.default_num_active_loras_cpu, 1.0, True,
    )  # fmt: skip
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.loraplex.add_lora.default, arguments, test_utils=tests)


def test_a_compiled_layer_follows_batches_and_slots() -> None:
    layer, wrapper = Layer(64, (32, 32), max_rank=16), make_wrapper()
    weight = random(64, 64)
    layer.write(0, 16, 16)

    def forward(x: torch.Tensor) -> torch.Tensor:
        y = x @ weight
        wrapper.add_lora_linear(y, x, layer.a, layer.b, 1.0, layer.outputs)
        return y * 2

    compiled = torch.compile(forward, backend="aot_eager", fullgraph=True, dynamic=True)
    for slots in ([0, BASE, 0], [BASE, BASE, BASE], [1, 0, 1]):
        if 1 in slots:
            layer.write(1, 8, 0)
        take(wrapper, slots)
        x = random(len(slots), 64)
        expected = 2 * ((x @ weight).float() + layer.delta(x, slots))
        torch.testing.assert_close(compiled(x).float(), expected, rtol=1e-2, atol=3e-2)
