"""Errors of training jobs that the caller can correct."""


class TrainingError(Exception):
    """A training job can't be run as asked. The message says what to change."""


class DataError(TrainingError):
    """Training data can't be used. The message says what is wrong, and where."""
