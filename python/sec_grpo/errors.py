"""The errors that mean the input is at fault, not the program."""

from __future__ import annotations


class RewardError(RuntimeError):
    """A reward function raised, or returned something that is not one reward per completion."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be resumed from; the message says why and what to do."""


class CurriculumDesyncError(RuntimeError):
    """The copies of a curriculum in the processes of a run are no longer equal."""


# ImportError: an extra that is not installed.
USER_ERRORS = (ValueError, TypeError, OSError, ImportError, RewardError)
