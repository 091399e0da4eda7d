"""The user and the folders of this process. A container that runs as a bare user id has no name and no home."""

from __future__ import annotations

import getpass
import os
from pathlib import Path

from histoloom.errors import UserError


def user_name() -> str:
    """The name of this computer's user; the user id where the system has no name for it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # by version of Python, and on Windows
        return f"user {os.getuid()}" if hasattr(os, "getuid") else "unknown user"


def home_folder() -> Path | None:
    """The user's home folder; None where the system knows none."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def start_folder() -> Path:
    """The working directory; ``UserError`` where it was removed since the terminal went there."""
    try:
        return Path.cwd()
    except FileNotFoundError as error:
        raise UserError("the current folder is gone; change to another one (cd) and type the command again") from error


def expand_home(path: str, *, setting: str) -> Path:
    """``path`` with a leading ``~`` replaced; ``UserError`` that names ``setting`` where that home is not known."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{setting}: no home folder is known for {path}; write the whole path") from error
