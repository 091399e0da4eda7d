"""What may stand in a name, a rater, a colour, a flag or a time, and when two names are the same."""

from __future__ import annotations

import re
import unicodedata
from datetime import UTC, datetime

from histoloom.errors import UserError

MAX_LENGTH = 200
"""Characters of a name or a rater."""

FLAGS = ("artefact", "mixed", "unsure")
"""What a cluster can be flagged with: no tissue, several tissues, not certain."""

NUMBER = re.compile(r"(?:cluster\s+)?(\d+)", flags=re.IGNORECASE)

_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")
_EDIT = re.compile(r"[A-Za-z0-9-]{0,40}")
_FORBIDDEN_CATEGORIES = {"Cc", "Cs", "Zl", "Zp"}
# They reorder the text around them, so that a name could be read as another one.
_DIRECTION_MARKS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def default_name(cluster: int) -> str:
    """What a cluster is called before an expert names it."""
    return f"cluster {cluster}"


def normalised(text: str) -> str:
    """The form in which names are compared: Unicode NFC, lower case, single spaces."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def folder_name(name: str) -> str:
    """A tissue's name as that of a folder: words joined by hyphens, of at most 200 bytes as file systems demand."""
    words = re.sub(r"[^\w]+", "-", name.casefold()).strip("-") or "tissue"
    return words.encode()[:MAX_LENGTH].decode(errors="ignore")


def valid(text: str, *, what: str) -> str:
    """``text`` without spaces at its ends; ``UserError`` where it is empty, too long or not one plain line."""
    trimmed = text.strip()
    if not trimmed:
        raise UserError(f"the {what} is empty; give at least one character")
    if len(trimmed) > MAX_LENGTH:
        raise UserError(f"the {what} has {len(trimmed)} characters; at most {MAX_LENGTH} are allowed")
    for character in trimmed:
        if unicodedata.category(character) in _FORBIDDEN_CATEGORIES or character in _DIRECTION_MARKS:
            raise UserError(f"the {what} holds the control character {character!r}; give it as one plain line")
    return trimmed


def valid_name(name: str, *, cluster: int) -> str:
    """The trimmed name; ``UserError`` for one that reads as another cluster's number."""
    text = valid(name, what="name")
    if NUMBER.fullmatch(text) and normalised(text) != default_name(cluster):
        raise UserError(f"the name {text!r} reads as a cluster's number; describe the tissue in words")
    return text


def valid_colour(colour: str) -> str:
    """``#rrggbb`` in lower case, or nothing where no colour is chosen; ``UserError`` for anything else."""
    text = colour.strip()
    if text and not _COLOUR.fullmatch(text):
        raise UserError(f"a colour is written #rrggbb, such as #0072b2; got {text[:40]!r}")
    return text.lower()


def valid_flag(flag: str) -> str:
    """One of ``FLAGS`` in lower case, or nothing; ``UserError`` for anything else."""
    text = flag.strip().lower()
    if text and text not in FLAGS:
        raise UserError(f"no flag {text[:40]!r}; allowed: {', '.join(FLAGS)}, or none")
    return text


def valid_edit(edit: str) -> str:
    """The token that joins events of one edit; ``UserError`` where it is none."""
    if not _EDIT.fullmatch(edit):
        raise UserError("an edit's token has at most 40 letters, digits and hyphens")
    return edit


def valid_time(time: str) -> str:
    """ISO 8601 in UTC, or nothing; a time without a zone is read as UTC. ``UserError`` for anything else."""
    if not time.strip():
        return ""
    try:
        parsed = datetime.fromisoformat(time.strip())
        parsed = parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)
        return parsed.astimezone(UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError):
        raise UserError(
            f"the time {time.strip()[:40]!r} is not ISO 8601, such as 2026-01-31T09:30:00; correct it or leave it empty"
        ) from None
