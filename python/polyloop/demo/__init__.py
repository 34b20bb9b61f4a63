"""The main job on real input: `python -m polyloop.demo`.

A local HTTP server serves the source of the Python standard library. Every file is fetched and parsed, first on one
event loop, then on a pool that loses a worker half-way. Nothing imports this package, and it uses public names only.
"""
