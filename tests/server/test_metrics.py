from server.metrics import CappedLabels


def test_labels_are_capped() -> None:
    label = CappedLabels(2)
    assert [label(name) for name in ("a", "b", "c", "a")] == ["a", "b", "other", "a"]
