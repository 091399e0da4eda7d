"""Numbers in words, as the report and the atlas print them."""

from __future__ import annotations

import json
from pathlib import Path

from histoloom.run.directory import read_json


def count(n: int, noun: str) -> str:
    """``1 slide``, ``2 slides``, ``2 patches``."""
    ending = "es" if noun.endswith("ch") else "s"
    return f"{n:,} {noun}" + ("" if n == 1 else ending)


def percent(share: float) -> str:
    """A share (0..1) as ``12.3 %``, or ``< 0.1 %``."""
    return "< 0.1 %" if 0 < share < 0.0005 else f"{100 * share:.1f} %"


def number(value: float) -> str:
    """A number with about four significant digits."""
    size = abs(value)
    if size >= 100:
        return f"{value:,.1f}"
    if size >= 10:
        return f"{value:.2f}"
    if size >= 0.01 or size == 0:
        return f"{value:.4f}"
    return f"{value:.5f}" if size >= 0.0001 else f"{value:.2e}"


def duration(seconds: float) -> str:
    """Seconds as ``42 s``, ``3 min 20 s`` or ``2 h 05 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def environment_in_words(path: Path) -> dict[str, str]:
    """``environment.json`` in words; empty where there is none."""
    content = read_json(path) if path.is_file() else {}
    for key, value in content.items():
        if isinstance(value, dict):
            content[key] = ", ".join(f"{name} {version}" for name, version in value.items())
        elif not isinstance(value, str):
            content[key] = json.dumps(value)
    return dict(content)
