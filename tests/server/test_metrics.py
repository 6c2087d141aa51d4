from server import metrics


def test_labels_are_capped(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(metrics, "MAX_ADAPTER_LABELS", 2)
    counting = metrics.RequestCounting(app=None)  # type: ignore[arg-type]
    labels = [counting._label(name) for name in ("a", "b", "c", "a")]
    assert labels == ["a", "b", "other", "a"]
