"""The record of a run: what it holds, and where its peak of memory is."""

import json
from pathlib import Path

import pytest

from training.data.conversations import exchange
from training.data.recipe import make_recipe
from training.run import record as module
from training.run.record import RunRecord, begin_record

DATA = [exchange("ping", "pong")]


def begun() -> RunRecord:
    return begin_record(make_recipe({}), "base", "0" * 64, "", DATA, 0)


def test_the_peak_is_the_gpus_where_training_ran_on_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = begun()
    record.follow([{"step": 1, "loss": 2.0}])
    assert record.peak_mib == record.peak_memory_mib > 0
    assert (record.device, record.peak_gpu_memory_mib) == ("cpu", 0)
    monkeypatch.setattr(module, "gpu_peak_mib", lambda device: (17_539, 18_000))
    record.follow([{"step": 1, "loss": 2.0}])
    assert record.peak_mib == 17_539 != record.peak_memory_mib
    record.write(tmp_path)
    written = json.loads((tmp_path / "training_run.json").read_text())
    assert written["peak_gpu_memory_mib"] == 17_539
    assert written["peak_gpu_reserved_mib"] == 18_000
    assert written["peak_memory_mib"] == record.peak_memory_mib


def test_another_date_template_or_data_is_another_job() -> None:
    found = json.loads(json.dumps(vars(begun())))
    assert begun().same_job(found)
    for change in ({"date": "2026-01-01"}, {"chat_template": "x"}):
        other = begin_record(make_recipe(change), "base", "0" * 64, "", DATA, 0)
        assert not other.same_job(found)
    assert not begin_record(make_recipe({}), "base", "0" * 64, "", DATA * 2, 0).same_job(found)


def test_the_best_step_is_that_of_the_least_validation_loss() -> None:
    record = begun()
    record.follow(
        [
            {"step": 1, "loss": 2.0},
            {"step": 1, "eval_loss": 1.5},
            {"step": 2, "loss": 1.0},
            {"step": 2, "eval_loss": 1.7},
        ]
    )
    assert (record.num_steps_run, record.best_step) == (2, 1)
