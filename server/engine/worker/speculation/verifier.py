"""Accepts those guesses that the model says itself, and samples the token behind them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import nn
from vllm.v1.outputs import LogprobsTensors, SamplerOutput
from vllm.v1.sample.rejection_sampler import PLACEHOLDER_TOKEN_ID, RejectionSampler


class Verifier(RejectionSampler):  # type: ignore[misc]
    """Takes the place of vLLM's rejection sampler. Only greedy requests have guesses.

    vLLM's own forgets on CPU to give temperatures back to its sampler
    (`vllm.utils.cpu_triton_utils._expand_kernel_impl` writes into a copy). Here each request's
    last token comes from the same sampler as without guesses, with the same random numbers.
    """

    def __init__(self, sampler: Any, spec_config: Any = None, device: Any = None) -> None:
        """Take what vLLM gives its own."""
        nn.Module.__init__(self)
        self.sampler = sampler

    def forward(
        self, metadata: Any, draft_probs: Any, logits: torch.Tensor, sampling_metadata: Any
    ) -> SamplerOutput:
        """Return each request's accepted guesses and the token behind them.

        `logits` has a row for each guess of a request, and one for the token behind its last.
        """
        counts = metadata.num_draft_tokens
        if not any(counts):
            return self.sampler(logits=logits, sampling_metadata=sampling_metadata)
        accepted = [0] * len(counts)
        if _has_usual_logprobs(sampling_metadata):
            accepted = self._accepted(metadata, logits)
        first = torch.tensor([0, *accumulate(count + 1 for count in counts)][:-1])
        last = first + torch.tensor(accepted)
        output = self.sampler(logits=logits[last], sampling_metadata=sampling_metadata)
        if not any(accepted):
            return output
        tokens = _joined(metadata, accepted, output.sampled_token_ids)
        logprobs = None
        if sampling_metadata.max_num_logprobs is not None:
            rows = first.unsqueeze(1) + torch.arange(tokens.shape[1])
            rows = torch.minimum(rows, last.unsqueeze(1)).flatten()
            logprobs = self._logprobs(logits[rows], tokens, sampling_metadata.max_num_logprobs)
        return SamplerOutput(sampled_token_ids=tokens, logprobs_tensors=logprobs)

    def _accepted(self, metadata: Any, logits: torch.Tensor) -> list[int]:
        """Return how many of its guesses each request accepts: those before the first wrong one."""
        said = self.sampler.greedy_sample(logits[metadata.target_logits_indices].float())
        right = (said == metadata.draft_token_ids).tolist()
        counts = metadata.num_draft_tokens
        ends = accumulate(counts)
        return [
            [*right[end - count : end], False].index(False)
            for end, count in zip(ends, counts, strict=True)
        ]

    def _logprobs(
        self, logits: torch.Tensor, tokens: torch.Tensor, num_logprobs: int
    ) -> LogprobsTensors:
        """Return them for all places of `tokens`. vLLM drops those of places without a token."""
        logprobs = self.sampler.compute_logprobs(logits)
        said = tokens.flatten().clamp(min=0).to(torch.int64)
        return self.sampler.gather_logprobs(logprobs, num_logprobs, said)


def _has_usual_logprobs(sampling_metadata: Any) -> bool:
    """Say whether log-probabilities, if any, are of the sampled and the likeliest tokens."""
    return sampling_metadata.max_num_logprobs != -1 and not sampling_metadata.logprob_token_ids


def _joined(metadata: Any, accepted: Sequence[int], last: torch.Tensor) -> torch.Tensor:
    """Return each request's tokens in a row that is filled up with placeholders."""
    shape = (len(accepted), max(accepted) + 1)
    tokens = torch.full(shape, PLACEHOLDER_TOKEN_ID, dtype=torch.int32)
    begin = 0
    for row, (count, number) in enumerate(zip(metadata.num_draft_tokens, accepted, strict=True)):
        tokens[row, :number] = metadata.draft_token_ids[begin : begin + number]
        tokens[row, number] = last[row, 0]
        begin += count
    return tokens
