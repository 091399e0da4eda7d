"""Errors that tell a user what to do next."""

from __future__ import annotations


class UserError(ValueError):
    """The user's input is wrong.

    The message is one line: what was got, what is allowed, what to type next. The command line prints it and
    exits with status 2.
    """


class SlidesAbsent(UserError):
    """The slides of a run, their table or their names are not at hand. What was made of them stays valid."""


class TrainingStopped(UserError):
    """A check of a network stopped its training; the message names the last good checkpoint."""


class TrainingDiverged(UserError):
    """A training loss became NaN or infinite; the message names the last good checkpoint."""
