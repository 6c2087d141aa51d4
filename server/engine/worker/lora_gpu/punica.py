"""vLLM's interface to the LoRA operators on CUDA, with our kernels for wrapped linear layers.

The plugin selects it through `get_punica_wrapper`. The layers that Loraplex leaves unwrapped
(embedding, head, experts) use vLLM's operators, which read the same metadata.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from vllm.lora.punica_wrapper.punica_base import PunicaWrapperBase
from vllm.lora.punica_wrapper.punica_gpu import PunicaWrapperGPU
from vllm.lora.utils import get_captured_lora_counts

from server.engine.worker.lora_gpu.metadata import RowMetadata, SlotLookup, index_tensors
from server.engine.worker.lora_gpu.operators import operators
from server.engine.worker.lora_gpu.slots import follow_slots
from server.engine.worker.lora_gpu.steps import group_rows


class FusedPunicaWrapper(PunicaWrapperGPU):  # type: ignore[misc]
    """vLLM's interface to the LoRA operators, with two kernel launches for a wrapped layer."""

    def __init__(
        self, max_num_batched_tokens: int, max_batches: int, device: Any, **kwargs: Any
    ) -> None:
        """Make the static metadata in place of vLLM's."""
        PunicaWrapperBase.__init__(self, max_num_batched_tokens, max_batches, device)
        self.lora_config = kwargs["lora_config"]
        self.max_loras = self.lora_config.max_loras
        self.special: bool = self.lora_config.specialize_active_lora
        captured = get_captured_lora_counts(self.max_loras, self.special)
        # Sampled positions have no tiles: only vLLM's operators use them.
        self._tokens = RowMetadata(self.max_loras, max_num_batched_tokens, device, captured)
        self._samples = RowMetadata(
            self.max_loras, max_num_batched_tokens, device, captured, tile_rows=()
        )
        self.token_mapping_meta = self._tokens.vllm
        self.prompt_mapping_meta = self._samples.vllm
        self.tiles: list[torch.Tensor] = self._tokens.tiles
        # The four index tensors of vLLM's base class, as rows of one tensor.
        self._indices = torch.zeros((4, max_num_batched_tokens), dtype=torch.long, device=device)
        (
            self._token_lora_indices,
            self._sampler_indices,
            self._sampler_indices_padded,
            self._embeddings_indices,
        ) = self._indices
        operators()
        follow_slots()

    def update_metadata(
        self,
        mapping: Any,
        lora_index_to_id: list[int | None],
        max_loras: int,
        vocab_size: int,
        **kwargs: Any,
    ) -> None:
        """Group a step's rows, once for all layers. Doesn't wait for the GPU.

        Raises:
            KeyError: an adapter is in no slot.
        """
        self.is_prefill = mapping.is_prefill
        slot_of = SlotLookup(lora_index_to_id)
        tokens = samples = group_rows(slot_of(mapping.index_mapping))
        if mapping.prompt_mapping != mapping.index_mapping:  # they are the same while decoding
            samples = group_rows(slot_of(mapping.prompt_mapping))
        self._tokens.update(tokens, operators().heights)
        self._samples.update(samples)
        self._copy_indices(tokens.slot_of_row, samples.slot_of_row, max_loras, vocab_size)

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        *,
        buffer: torch.Tensor | None = None,
        add_inputs: bool = True,
        **kwargs: Any,
    ) -> None:
        """Compute `y += x @ A.T @ B.T * scale` for each projection of a linear layer.

        torch.compile traces this method, so everything that may change is in tensors.
        """
        meta = self.token_mapping_meta
        num_groups = (
            meta.num_active_loras_cpu if self.special else meta.default_num_active_loras_cpu
        )
        torch.ops.loraplex.add_lora(
            y.view(-1, y.shape[-1]),
            x.view(-1, x.shape[-1]),
            list(lora_a_stacked),
            list(lora_b_stacked),
            self.tiles,
            meta.token_lora_mapping,
            meta.token_indices_sorted_by_lora_ids,
            meta.num_tokens_per_lora,
            meta.lora_token_start_loc,
            meta.active_lora_ids,
            meta.no_lora_flag_cpu,
            num_groups,
            scale,
            add_inputs,
        )

    def _copy_indices(
        self,
        tokens: NDArray[np.int32],
        samples: NDArray[np.int32],
        max_loras: int,
        vocab_size: int,
    ) -> None:
        indices = index_tensors(tokens, samples, max_loras, vocab_size)
        host = torch.empty(
            indices.shape, dtype=torch.long, device="cpu", pin_memory=self._indices.is_cuda
        )
        host.numpy()[:] = indices
        self._indices[:, : indices.shape[1]].copy_(host, non_blocking=True)
        self.indices_len[:] = [len(tokens), len(samples), len(samples), len(tokens)]
