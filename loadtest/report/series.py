"""Reads metrics pages in Prometheus's text format."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families


def series(pages: list[tuple[float, bytes]]) -> dict[str, list[tuple[float, float]]]:
    """Return each gauge and counter over time, summed over its labels.

    Of a histogram these are its `_sum` and `_count`.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    for at, page in pages:
        totals: dict[str, float] = {}
        try:
            for name, value in _samples(page):
                totals[name] = totals.get(name, 0.0) + value
        except ValueError:
            continue  # a page that was cut off
        for name, value in totals.items():
            found.setdefault(name, []).append((at, value))
    return found


def total(page: bytes, name: str, **labels: str) -> float:
    """Return the sum of a metric's samples that have these labels, 0 if there are none."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
        if sample.name == name and sample.labels.items() >= labels.items()
    )


def _samples(page: bytes) -> list[tuple[str, float]]:
    lines = [line for line in page.decode(errors="replace").splitlines() if "_bucket" not in line]
    return [
        (sample.name, sample.value)
        for family in text_string_to_metric_families("\n".join([*lines, ""]))
        for sample in family.samples
        if not sample.name.endswith("_created")
    ]
