"""The version of aiomultiprocess whose interface this is."""

__version__ = "0.9.1"
