"""The documentation as a site: ``make docs`` builds it into build/docs. Every warning is an error there.

Pages are Markdown (MyST). The reference of commands, settings, presets and the Python API is written from the code at
each build, so it cannot fall behind it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sphinx.application import Sphinx

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

project = "Histoloom"
author = "The Histoloom authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax"]
exclude_patterns = ["design.md"]
myst_heading_anchors = 4
myst_enable_extensions = ["dollarmath"]
nitpicky = False
html_theme = "furo"
html_title = "Histoloom"
html_theme_options = {"source_directory": "docs/"}
html_copy_source = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "exclude-members": "__init__, __new__, model_config"}


def setup(app: Sphinx) -> None:
    """Writes the generated pages before Sphinx looks for its sources."""
    import generated_reference

    app.connect("config-inited", lambda *_: generated_reference.write(HERE / "reference"))
