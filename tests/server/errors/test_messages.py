"""No message of an error is longer than a reader, a log or a client can take."""

from __future__ import annotations

import pytest

from server.errors import MAX_MESSAGE_CHARACTERS, InvalidRequest, NotLoadable
from server.errors.mapping import to_api_error


@pytest.mark.parametrize("length", [1, MAX_MESSAGE_CHARACTERS])
def test_a_message_of_usual_length_stays_as_it_is(length: int) -> None:
    assert InvalidRequest("x" * length).message == "x" * length


def test_a_long_list_is_cut_and_says_how_much_is_left() -> None:
    text = f"stop_token_ids: {list(range(100_000))}"
    error = InvalidRequest(text, param="stop_token_ids")
    assert len(error.message) <= MAX_MESSAGE_CHARACTERS
    assert error.message.startswith("stop_token_ids: [0, 1, 2, ")
    assert error.message.endswith(f" and {len(text) - 960:,} characters more")
    assert str(error) == error.message, "in the log, too"
    assert len(NotLoadable(text).message) <= MAX_MESSAGE_CHARACTERS


def test_errors_of_other_parts_are_cut_where_they_become_answers() -> None:
    from adapters_registry.errors import SourceRefused

    assert len(to_api_error(SourceRefused("x" * 9999)).message) <= MAX_MESSAGE_CHARACTERS
