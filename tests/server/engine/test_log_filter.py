"""vLLM's log lines say where an exception was raised, and nothing of what it says."""

import io
import logging

import pytest

from server.engine.log_filter import hide_exception_texts

PROMPT = "my secret prompt"


@pytest.fixture
def logged() -> tuple[logging.Logger, io.StringIO]:
    stream, logger = io.StringIO(), logging.Logger("vllm")
    logger.addHandler(logging.StreamHandler(stream))
    hide_exception_texts(logger)
    hide_exception_texts(logger)
    assert len(logger.handlers[0].filters) == 1
    return logger, stream


def fail() -> None:
    try:
        raise KeyError(PROMPT)
    except KeyError as error:
        raise ValueError(f"no template for {PROMPT}") from error


def test_texts_of_exceptions_are_left_out(logged: tuple[logging.Logger, io.StringIO]) -> None:
    logger, stream = logged
    try:
        fail()
    except ValueError as error:
        logger.exception("Error in create_messages: %s", error)
        logger.error("and %(error)s", {"error": 1})
        logger.error(error)
    text = stream.getvalue()
    assert PROMPT not in text
    assert "Error in create_messages: ValueError" in text
    assert ", in fail\n" in text, "but the place is there"


def test_other_lines_stay_as_they_are(logged: tuple[logging.Logger, io.StringIO]) -> None:
    logger, stream = logged
    logger.error("%d of %s", 1, "two")
    assert stream.getvalue() == "1 of two\n"
