"""Histoloom: from unlabeled H&E slides to a named tissue atlas with a generator for each tissue."""
