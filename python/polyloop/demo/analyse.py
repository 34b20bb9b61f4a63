"""What the demo does with one file: fetch it, parse it, count what is in it. The same code on one loop and on a pool.

Importable by name, as any worker wants its functions, and free of polyloop.
"""

from __future__ import annotations

import ast
import asyncio
import os
import time
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import aiohttp

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What one file holds."""

    path: str
    lines: int
    is_python: bool = True
    functions: int = 0
    coroutines: int = 0
    classes: int = 0
    imports: tuple[str, ...] = ()
    longest_function: tuple[int, str] = (0, "")


@dataclass(frozen=True, slots=True)
class Visit:
    """The facts of one file, and who found them."""

    facts: FileFacts
    pid: int
    cpu_s: float
    """CPU time of that process since its start, when it was done."""


async def visit(url: str) -> Visit:
    """Fetch one file and parse it."""
    session = await _session()
    async with session.get(url) as response:
        response.raise_for_status()
        source = await response.read()
    return Visit(analyse(urlsplit(url).path, source), os.getpid(), time.process_time())


def analyse(path: str, source: bytes) -> FileFacts:
    """Count what a source file holds. A file that is no valid Python counts as such."""
    lines = source.count(b"\n")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            nodes = list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError):
        return FileFacts(path, lines, is_python=False)
    functions = [node for node in nodes if isinstance(node, FUNCTIONS)]
    return FileFacts(
        path,
        lines,
        functions=len(functions),
        coroutines=sum(isinstance(node, ast.AsyncFunctionDef) for node in functions),
        classes=sum(isinstance(node, ast.ClassDef) for node in nodes),
        imports=tuple(name for node in nodes for name in _imported(node)),
        longest_function=max(((_length(node), node.name) for node in functions), default=(0, "")),
    )


def _imported(node: ast.AST) -> list[str]:
    match node:
        case ast.Import(names=names):
            return [alias.name.partition(".")[0] for alias in names]
        case ast.ImportFrom(module=str(module), level=0):
            return [module.partition(".")[0]]
    return []


def _length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


# One session per process and loop: made by the first task, closed with the loop, which ends its async generators.
_Opened = tuple[asyncio.AbstractEventLoop, "AsyncGenerator[aiohttp.ClientSession]", aiohttp.ClientSession]
_opened: _Opened | None = None


async def _session() -> aiohttp.ClientSession:
    global _opened
    loop = asyncio.get_running_loop()
    if _opened is None or _opened[0] is not loop:
        lifetime = _open_session()
        _opened = (loop, lifetime, await anext(lifetime))
    return _opened[2]


async def _open_session() -> AsyncGenerator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session
