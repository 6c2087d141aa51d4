"""What can go wrong with a training job and is the caller's to mend."""


class TrainingError(Exception):
    """A training job that can't be run as asked; the message says what to change."""


class DataError(TrainingError):
    """Training data that can't be used; the message lists every bad line."""
