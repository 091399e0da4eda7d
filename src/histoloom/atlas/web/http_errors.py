"""What the atlas refuses, beyond a plain ``UserError`` (400): raised anywhere, answered by ``errors.py``."""

from __future__ import annotations

from histoloom.errors import UserError


class NotFound(UserError):
    """What was asked for by id, number or k is not in this run (404)."""


class Conflict(UserError):
    """What was asked for does not go together with what is there now (409)."""
