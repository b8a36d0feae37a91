"""Sphinx configuration: ``make docs`` builds the site into docs/_build, with warnings as errors."""

import re
from importlib.metadata import version as installed_version
from pathlib import Path

from sphinx.application import Sphinx

project = "geffect"
author = copyright = "The geffect authors"
release = version = installed_version("geffect")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"geffect {release}"
html_copy_source = False
html_static_path, html_css_files = ["_static"], ["site.css"]
default_role = "py:obj"  # `name` in a docstring links to that name
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_inherit_docstrings = False
add_module_names = False
napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_use_rtype = False
napoleon_use_ivar = True


def setup(app: Sphinx) -> None:
    """Put llms.txt at the site's root, with the site's pages for the clone's files."""
    text = re.sub(r"\.md\)", ".html)", Path(__file__).with_name("llms.txt").read_text(encoding="utf-8"))
    app.connect("build-finished", lambda app, _: Path(app.outdir, "llms.txt").write_text(text, encoding="utf-8"))
