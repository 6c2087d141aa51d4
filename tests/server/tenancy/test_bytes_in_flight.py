"""Bytes of bodies, in total and by tenant."""

import pytest

from server.errors import Overloaded, OverQuota
from server.tenancy.bytes_in_flight import BytesInFlight


def test_bytes_are_counted_until_their_request_ends() -> None:
    in_flight = BytesInFlight(max_bytes=100, max_bytes_per_tenant=60)
    with in_flight.held("acme") as first:
        first.add(40)
        with in_flight.held("acme") as second, pytest.raises(OverQuota):
            second.add(21)
        with in_flight.held("other") as third:
            third.add(60)
            with pytest.raises(Overloaded), in_flight.held("third") as fourth:
                fourth.add(1)
        assert in_flight.total == 40
    assert in_flight.total == 0
