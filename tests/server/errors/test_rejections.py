"""What a client is told of an adapter that was rejected for many reasons."""

from server.errors import REASONS_IN_MESSAGE, rejected


def test_the_message_has_the_first_reasons_and_the_list_has_all() -> None:
    reasons = [{"code": f"c{n}", "message": f"cause {n}", "key": None} for n in range(20)]
    error = rejected(reasons)
    assert error.extra["reasons"] == reasons
    assert f"cause {REASONS_IN_MESSAGE - 1}; and 17 more in `reasons`" in error.message
    assert f"cause {REASONS_IN_MESSAGE}" not in error.message
    assert "more" not in rejected(reasons[:REASONS_IN_MESSAGE]).message
