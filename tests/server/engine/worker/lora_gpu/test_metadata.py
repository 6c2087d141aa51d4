"""A step's metadata, made on the host in one go, is what vLLM makes of the same batch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.lora.layers import LoRAMapping
from vllm.lora.ops.triton_ops.lora_kernel_metadata import LoRAKernelMeta
from vllm.lora.punica_wrapper.utils import convert_mapping

from server.engine.worker.lora_gpu.metadata import RowMetadata, SlotLookup, index_tensors
from server.engine.worker.lora_gpu.steps import group_rows

IDS = [7, None, 3, 12, 5]
SLOTS = len(IDS)
MAX_ROWS = 64
HELD = [0, *(each for each in IDS if each)]
BATCHES = st.lists(st.sampled_from(HELD), min_size=1, max_size=MAX_ROWS)


@given(BATCHES, st.sampled_from([[SLOTS + 1], [1, 2, 4, SLOTS + 1]]))
@settings(deadline=None)
def test_vllms_own_metadata(ids: list[int], captured: list[int]) -> None:
    slots = SlotLookup(IDS)(ids)
    theirs = LoRAKernelMeta.make(SLOTS, MAX_ROWS, "cpu", captured_lora_counts=captured)
    theirs.prepare_tensors(torch.from_numpy(slots).long())
    ours = RowMetadata(SLOTS, MAX_ROWS, "cpu", captured)
    ours.update(group_rows(np.full(MAX_ROWS, 2, np.int32)))  # what an earlier step left
    ours.update(group_rows(slots))
    assert torch.equal(ours.vllm.no_lora_flag_cpu, theirs.no_lora_flag_cpu)
    if not theirs.no_lora_flag_cpu.item():  # vLLM fills the rest only with adapters
        for name in ("active_lora_ids", "num_tokens_per_lora", "num_active_loras_cpu"):
            assert torch.equal(getattr(ours.vllm, name), getattr(theirs, name)), name
        for name in ("token_lora_mapping", "token_indices_sorted_by_lora_ids"):
            mine, other = getattr(ours.vllm, name), getattr(theirs, name)
            assert torch.equal(mine[: len(ids)], other[: len(ids)]), name
        groups = len(set(ids))
        starts = ours.vllm.lora_token_start_loc[: groups + 1]
        assert torch.equal(starts, theirs.lora_token_start_loc[: groups + 1])


@given(BATCHES, BATCHES)
@settings(deadline=None)
def test_vllms_index_tensors(tokens: list[int], samples: list[int]) -> None:
    mapping = LoRAMapping(index_mapping=tuple(tokens), prompt_mapping=tuple(samples))
    *theirs, lengths = convert_mapping(mapping, IDS, SLOTS + 1, 1000, torch.device("cpu"))
    slot_of = SlotLookup(IDS)
    ours = index_tensors(slot_of(tokens), slot_of(samples), SLOTS + 1, 1000)
    for mine, other, length in zip(ours, theirs, lengths, strict=True):
        assert mine[:length].tolist() == other.tolist()


def test_the_tensors_stay_where_they_are() -> None:
    metadata = RowMetadata(SLOTS, MAX_ROWS, "cpu", [SLOTS + 1])
    before = [each.data_ptr() for each in metadata.tiles]
    metadata.update(group_rows(np.array([0, 1, -1], np.int32)))
    assert [each.data_ptr() for each in metadata.tiles] == before
    assert metadata.tiles[0][:3, 0].tolist() == [0, 1, -1]


def test_an_id_without_a_slot() -> None:
    with pytest.raises(KeyError, match="4"):
        SlotLookup(IDS)([0, 3, 4])
    with pytest.raises(KeyError, match="99"):
        SlotLookup(IDS)([99])
    assert SlotLookup([None, None])([0, 0]).tolist() == [-1, -1]
