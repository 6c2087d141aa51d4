"""Figures read from pages in Prometheus's text format."""

import pytest

from loadtest.report.series import total

PAGE = b"""# TYPE loads_total counter
loads_total{tier="disk",outcome="ok"} 3.0
loads_total{tier="origin, \\"far\\"",outcome="ok"} 4.0
loads_total{tier="disk",outcome="failed"} 5.0
loads_created{tier="disk",outcome="ok"} 1.7e9
"""


@pytest.mark.parametrize(
    ("labels", "expected"),
    [({"outcome": "ok"}, 7), ({}, 12), ({"tier": 'origin, "far"'}, 4), ({"tier": "slot"}, 0)],
)
def test_a_total_is_of_the_series_that_have_the_labels(
    labels: dict[str, str], expected: float
) -> None:
    assert total(PAGE, "loads_total", **labels) == expected
    assert total(PAGE, "unloads_total", **labels) == 0
