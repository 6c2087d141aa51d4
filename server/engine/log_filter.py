"""Keeps prompts out of vLLM's log lines: the text of an exception may quote one."""

from __future__ import annotations

import logging
import traceback

_HIDDEN = "(its text is left out: it may quote a prompt)"


class ExceptionTexts(logging.Filter):
    """Replaces the text of an exception by its type. The traceback's places in the code stay."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.msg, BaseException):
            record.msg = _name(record.msg)
        if isinstance(record.args, tuple):
            record.args = tuple(
                _name(arg) if isinstance(arg, BaseException) else arg for arg in record.args
            )
        if record.exc_info and isinstance(error := record.exc_info[1], BaseException):
            places = "".join(traceback.format_tb(error.__traceback__))
            record.exc_info = None
            record.exc_text = (
                f"Traceback (most recent call last):\n{places}{_name(error)} {_HIDDEN}"
            )
        return True


def hide_exception_texts(logger: logging.Logger) -> None:
    """Add the filter to each handler of a logger that doesn't have it yet."""
    for handler in logger.handlers:
        if not any(isinstance(known, ExceptionTexts) for known in handler.filters):
            handler.addFilter(ExceptionTexts())


def _name(error: BaseException) -> str:
    return type(error).__qualname__
