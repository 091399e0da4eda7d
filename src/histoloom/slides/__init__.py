"""Slides, their tissue, and random patches of them."""
