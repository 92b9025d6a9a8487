"""The errors that mean that the input or the settings are at fault, not the program."""

from __future__ import annotations


class RewardError(RuntimeError):
    """A reward function raised, or returned something that is not one reward per completion."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be resumed from; the message says why and what to do."""


class CurriculumDesyncError(RuntimeError):
    """The copies of a curriculum in the processes of a run are no longer equal."""


def is_user_error(error: Exception) -> bool:
    """Whether the message alone tells what to change, so that no traceback is needed."""
    # ImportError: an extra that is not installed.
    if isinstance(error, (ValueError, TypeError, OSError, ImportError, RewardError)):
        return True
    # By name: torch is not needed to tell the others.
    return type(error).__name__ == "OutOfMemoryError"
