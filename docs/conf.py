"""Sphinx configuration: ``make docs`` builds the site into docs/_build, with warnings as errors."""

from importlib.metadata import version as installed_version

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
