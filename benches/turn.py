"""A contestant's turn, as a program: `turn.py <bench> <family>/<contestant>` takes its figures and prints them.

Workers import the main module of their program, and so pay for what that imports. This one imports nothing by itself.
"""

if __name__ == "__main__":
    import importlib
    import sys

    from harness.turns import take_turn

    take_turn(importlib.import_module(sys.argv[1]).FAMILIES, sys.argv[2])
