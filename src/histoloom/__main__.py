"""``python -m histoloom``."""

from __future__ import annotations

from histoloom.cli import main

main()
