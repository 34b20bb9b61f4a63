"""What both have Python do."""


def no_op(n: int) -> int:
    return n


def compute(n: int) -> int:
    """Keeps the interpreter, and its GIL, for a while."""
    total = 0
    for i in range(10_000):
        total += i * n % 7
    return total
