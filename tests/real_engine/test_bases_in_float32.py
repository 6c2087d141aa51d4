"""Every family of bases in vLLM with our LoRA operators, against Transformers and PEFT: in float32.

Nothing is rounded, so the bound is narrow. `make bases` runs this; no server is in play.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from pathlib import Path

import pytest

from adapters_registry.families import FAMILIES
from tests.real_engine.families import FORMATS
from tests.real_engine.many_bases import Answer, Job, answer_jobs
from tests.real_engine.reference import NOISE, distance, load, make_adapter
from tests.tiny_families import BYTES, write_tiny_base

pytestmark = pytest.mark.skipif(os.environ.get("BASES") != "all", reason="`make bases` runs it")

BOUND = 1e-4
LENGTHS = (5, 60)
"""Of the prompts, in tokens: within a sliding window, and beyond it."""


@dataclass(frozen=True)
class Case:
    """A tiny base with two adapters, on all of its layers and on some."""

    base: Path
    models: list[Path | None]
    job: Job


def make_case(directory: Path, architecture: str, targets: list[str]) -> Case:
    form = FORMATS[architecture]
    base = write_tiny_base(directory / "base", architecture, form.special_tokens, form.template)
    everywhere = {"r": 8, "lora_alpha": 8, "target_modules": "all-linear"}
    partly = {"r": 4, "lora_alpha": 3, "target_modules": form.targets}
    models = [
        None,
        make_adapter(base, directory / "all", 1, **everywhere),
        make_adapter(base, directory / "some", 2, **partly),
    ]
    prompts = [random.Random(length).choices(range(BYTES), k=length) for length in LENGTHS]
    batch = [(prompt, str(model) if model else None) for prompt in prompts for model in models]
    return Case(base, models, Job(str(base), targets, batch))


@pytest.fixture(scope="module")
def answered(
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, tuple[Case, list[Answer]]]:
    cases = {
        family.architecture: make_case(
            tmp_path_factory.mktemp("tiny"), family.architecture, list(family.targets)
        )
        for family in FAMILIES
    }
    answers = answer_jobs([case.job for case in cases.values()])
    return dict(zip(cases, zip(cases.values(), answers, strict=True), strict=True))


@pytest.mark.parametrize("architecture", FORMATS)
def test_a_base_and_its_adapters_answer_as_in_transformers(
    architecture: str, answered: dict[str, tuple[Case, list[Answer]]]
) -> None:
    case, answers = answered[architecture]
    loaded = {model: load(case.base, model) for model in case.models}
    own: list[float] = []
    others: list[float] = []
    for (prompt, path), answer in zip(case.job.batch, answers, strict=True):
        for model, reference in loaded.items():
            is_own = (model and str(model)) == path
            (own if is_own else others).append(distance(reference, prompt, *answer))
    print(f"\n{architecture} float32: {max(own):.2g} from its own, {min(others):.2g} from others")
    assert max(own) < BOUND
    assert min(others) > 2 * NOISE
