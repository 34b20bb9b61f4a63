"""Stands where programs look for aiomultiprocess, and gives them `polyloop.compat`."""

import importlib
import sys

for _name in ("", ".__version__", ".core", ".pool", ".scheduler", ".types"):
    sys.modules[__name__ + _name] = importlib.import_module("polyloop.compat" + _name)
