"""How Sphinx builds these pages: `make docs`."""

import importlib.metadata
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "python"))

project = "polyloop"
author = "The polyloop authors"
release = importlib.metadata.version("polyloop")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["decisions/0000-template.md"]
nitpicky = False

html_theme = "furo"
html_title = "polyloop"

myst_heading_anchors = 3

default_role = "code"  # docstrings write `name` as Markdown does
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {
    "members": True,
    "inherited-members": "Future,Exception,BaseException",
    "show-inheritance": True,
}
autodoc_class_signature = "mixed"
napoleon_numpy_docstring = False
