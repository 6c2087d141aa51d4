"""How far two candidates are apart."""

from pathlib import Path

from tests.training.adapters import make_adapter
from training.evaluation.candidates import LocalModel
from training.evaluation.probes import PROBES, compare_on_probes, probe_samples
from training.models.base_model import load_tokenizer


def test_candidates_are_compared_token_by_token(tiny_llama: Path, tmp_path: Path) -> None:
    base = LocalModel(tiny_llama)
    adapted = LocalModel(tiny_llama, make_adapter(tiny_llama, tmp_path / "adapter"))
    samples = probe_samples(tiny_llama)
    ids = load_tokenizer(tiny_llama)(PROBES[0])["input_ids"]
    assert (samples[0].input_ids, samples[0].answer_ids) == (ids, ids[1:])
    difference = compare_on_probes(base, adapted, tiny_llama)
    assert difference.num_tokens == sum(len(sample.answer_ids) for sample in samples)
    assert 0 < difference.mean < difference.largest
    assert compare_on_probes(adapted, adapted, tiny_llama).largest == 0
