"""The exceptions a user can meet, each named after the boundary at which the input stopped being right.

All are `ValueError`s: something handed to us was wrong, and the message says what was expected, what was found
and what to do. The command line prints the message alone and exits with code 2.
"""


class UnderstudyError(ValueError):
    """Base of every error whose message is meant for a user."""


class ConfigError(UnderstudyError):
    """A recipe, an override or a combination of settings that cannot be run."""


class DataError(UnderstudyError):
    """A data file or record that cannot be read or used."""


class ModelError(UnderstudyError):
    """A checkpoint, tokenizer or expert that cannot be loaded or does not fit the student."""


class TrainingError(UnderstudyError):
    """A run that had to stop: a non-finite loss, too many failed rollouts, a checkpoint that cannot be written."""
