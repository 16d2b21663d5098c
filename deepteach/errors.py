"""The errors users meet: each says what was expected, what came, and what to do.

Every leaf also inherits the builtin a caller would expect to catch, and carries the
exit code with which the command line ends.
"""

from __future__ import annotations


class DeepTeachError(Exception):
    """Base of every error that deepteach raises on purpose."""

    exit_code = 1


class ConfigError(DeepTeachError, ValueError):
    """A setting, or a combination of settings, that cannot be done exactly."""

    exit_code = 2


class DataError(DeepTeachError, ValueError):
    """Data that cannot be trained on: shapes, labels, missing files, overlap."""

    exit_code = 2


class CheckpointError(DeepTeachError, RuntimeError):
    """A checkpoint that is damaged, foreign, or of another format version."""

    exit_code = 3


class NumericError(DeepTeachError, ArithmeticError):
    """A non-finite loss, gradient or weight, raised before anything is changed."""

    exit_code = 4


class ReplayError(NumericError):
    """A recorded step could not be replayed: the recovered state is not the true one.

    `off` is by how much, relatively, where that was measured.
    """

    def __init__(self, message: str = "", off: float | None = None) -> None:
        super().__init__(message)
        self.off = off


class StorageError(DeepTeachError, OSError):
    """The disk, or the output folder, failed."""

    exit_code = 5


class RankError(DeepTeachError, RuntimeError):
    """Another process of the same training died or does not answer."""

    exit_code = 6


class CollapseWarning(UserWarning):
    """The teacher's weights rest on almost no samples."""


class WindowWarning(UserWarning):
    """Something else than a step moved the student; steps before that are not looked through."""


class ReversalWarning(UserWarning):
    """Undone steps were lost to rounding; the states of later windows are kept instead."""
