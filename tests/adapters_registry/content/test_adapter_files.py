"""Which files beside an adapter's are worth a word."""

from __future__ import annotations

from adapters_registry.content.adapter_files import ALL_FILES, MAX_LEFT_OUT, left_out


def test_files_that_are_kept_and_files_for_people_are_not_mentioned() -> None:
    quiet = (".gitattributes", "README.md", "LICENSE", "NOTICE.txt", "loss.png")
    assert left_out([*ALL_FILES, *quiet, "training_run.json", "training_run.png"]) == ()


def test_all_others_are() -> None:
    names = ["optimizer.pt", "adapter_model.bin", "config.json", "half\ud800"]
    assert left_out(names) == ("adapter_model.bin", "config.json", "half?", "optimizer.pt")


def test_not_more_are_named_than_a_record_may_hold() -> None:
    found = left_out(f"{number:03}.pt" for number in range(MAX_LEFT_OUT + 7))
    assert found[:1] == ("000.pt",)
    assert found[-1] == "7 others"
    assert len(found) == MAX_LEFT_OUT + 1
