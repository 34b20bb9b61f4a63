"""Checks the rule of who may import whom, for the crates and for the Python package. `make lint` runs it.

The tables below are the rule. Imports that only type checkers see are free.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ANYTHING = None


@dataclass(frozen=True)
class CrateRule:
    """What a crate may depend on: crates of this workspace (of any kind), and crates from outside (except in tests)."""

    workspace: frozenset[str] = frozenset()
    outside: frozenset[str] | None = ANYTHING
    forbids_unsafe: bool = False


CRATES = {
    # shm: OS bindings only.
    "polyloop-shm": CrateRule(outside=frozenset({"rustix", "libc", "loom", "thiserror"})),
    # core: decisions without effects, so nothing that could have one.
    "polyloop-core": CrateRule(outside=frozenset({"smallvec", "thiserror"}), forbids_unsafe=True),
    "polyloop": CrateRule(workspace=frozenset({"polyloop-shm", "polyloop-core", "polyloop-macros"})),
    "polyloop-macros": CrateRule(outside=frozenset(), forbids_unsafe=True),
    # python: converts and delegates; what it needs of core and shm the engine re-exports.
    "polyloop-python": CrateRule(workspace=frozenset({"polyloop"})),
    "polyloop-sim": CrateRule(workspace=frozenset({"polyloop-core", "polyloop-shm"}), forbids_unsafe=True),
    "polyloop-paths": CrateRule(workspace=frozenset({"polyloop"}), forbids_unsafe=True),
}
PYO3_CRATE = "polyloop-python"
RUST_FACE = "polyloop"
"""Nothing of Python is linked into a Rust program, whatever it chooses of this crate."""

# A module imports from layers above its own line only, never from its own. Packages count as one module.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"_checks", "_core", "_lazy", "_preload", "_progress", "errors", "_exceptions", "_limits", "scheduler"}),
    frozenset({"_codec", "_stats", "context", "current", "handle", "options", "results", "stream"}),
    frozenset({"_functions"}),
    frozenset({"_bridge", "_contextvars", "_launch", "_lifespan", "_logs", "_room", "_select", "_stacks", "_threads"}),
    frozenset({"_produce", "_verbs"}),
    frozenset({"parent"}),
    frozenset({"_worker"}),
    frozenset({"_roster", "_rust_worker", "process", "queue"}),
    frozenset({"_news", "_staff"}),
    frozenset({"pool"}),
    frozenset({"executor", "_frozen"}),
    frozenset({"__init__"}),
    frozenset({"demo", "ext", "compat"}),
)
OPTIONAL = frozenset({"demo", "ext", "compat"})
"""They use public names only, and nothing imports them."""

PICKLERS = frozenset({"pickle", "_pickle", "cloudpickle"})
PICKLER_MODULE = "_codec"

LIGHT = "_worker"
HEAVY = frozenset({"cloudpickle", "ctypes", "email", "http", "unittest", "urllib", "xml"})
"""What every worker would pay for at its start, if it or a layer below it imported them outside a function."""


def main() -> int:
    root = Path(__file__).resolve().parent.parent
    command = ["cargo", "metadata", "--format-version", "1", "--no-deps", "--manifest-path", str(root / "Cargo.toml")]
    metadata = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    tree = ["cargo", "tree", "--package", RUST_FACE, "--all-features", "--edges", "normal,build", "--prefix", "none"]
    linked = subprocess.run(tree, check=True, stdout=subprocess.PIPE, text=True, cwd=root).stdout
    faults = [*crate_faults(metadata), *link_faults(linked), *package_faults(root / "python" / "polyloop")]
    for fault in faults:
        print(f"import rule: {fault}", file=sys.stderr)
    if not faults:
        print(f"import rule: kept by {len(metadata['packages'])} crates and the Python package")
    return 1 if faults else 0


def crate_faults(metadata: dict[str, Any]) -> Iterator[str]:
    """What breaks the rule in the output of `cargo metadata`."""
    packages = metadata["packages"]
    members = {package["name"] for package in packages}
    for package in packages:
        name = package["name"]
        rule = CRATES.get(name)
        if rule is None:
            yield f"crate {name} is not in the table CRATES of tools/check_imports.py"
            continue
        for dependency in package["dependencies"]:
            yield from _dependency_faults(name, rule, dependency, members)
        if rule.forbids_unsafe:
            yield from _unsafe_faults(name, package["targets"])


def link_faults(tree: str) -> Iterator[str]:
    """What of Python is in the output of `cargo tree`."""
    for name in sorted({line.split()[0] for line in tree.splitlines() if line.startswith(("pyo3", "python"))}):
        yield f"crate {RUST_FACE} brings {name} into Rust programs; only {PYO3_CRATE} knows Python"


def _dependency_faults(name: str, rule: CrateRule, dependency: dict[str, Any], members: set[str]) -> Iterator[str]:
    wanted = dependency["name"]
    if wanted in members:
        # A crate's tests may use the crate itself with other features.
        is_own_test = wanted == name and dependency["kind"] == "dev"
        if wanted not in rule.workspace and not is_own_test:
            yield f"crate {name} depends on {wanted}; it may depend on {_listed(rule.workspace)} of this workspace"
        return
    if dependency["kind"] == "dev":
        return
    if wanted.startswith("pyo3") and name != PYO3_CRATE:
        yield f"crate {name} depends on {wanted}; only {PYO3_CRATE} knows Python"
    elif rule.outside is not ANYTHING and wanted not in rule.outside:
        yield f"crate {name} depends on {wanted}; from outside it may use {_listed(rule.outside)}"


def _unsafe_faults(name: str, targets: list[dict[str, Any]]) -> Iterator[str]:
    for target in targets:
        if {"lib", "bin", "proc-macro"}.intersection(target["kind"]):
            source = Path(target["src_path"])
            if "#![forbid(unsafe_code)]" not in source.read_text().splitlines():
                yield f"crate {name}: {source.name} must say #![forbid(unsafe_code)]"


def package_faults(package: Path) -> Iterator[str]:
    """What breaks the rule in the Python package at this path."""
    rank = {module: height for height, layer in enumerate(LAYERS) for module in layer}
    for file in sorted(package.rglob("*.py")):
        where = file.relative_to(package.parent)
        module = where.parts[1].removesuffix(".py")
        if module not in rank:
            yield f"{where}: module {module} is in no layer of tools/check_imports.py; say where it belongs"
            continue
        for found in imports_of(file, where):
            yield from _import_faults(where, module, found, rank)


@dataclass(frozen=True)
class Import:
    """One imported name, absolute."""

    name: str
    line: int
    at_import_time: bool


def _import_faults(where: Path, module: str, found: Import, rank: dict[str, int]) -> Iterator[str]:
    place = f"{where}:{found.line}"
    top, _, rest = found.name.partition(".")
    if top in PICKLERS and module != PICKLER_MODULE:
        yield f"{place}: imports {top}; only {PICKLER_MODULE}.py knows pickling"
    if rank[module] <= rank[LIGHT] and found.at_import_time and top in HEAVY:
        yield f"{place}: imports {top} at every worker's start; import it inside the function that needs it"
    if top != where.parts[0]:
        return
    wanted = rest.partition(".")[0]
    wanted = wanted if wanted in rank else "__init__"
    if wanted == module:
        return
    if wanted in OPTIONAL:
        yield f"{place}: imports {found.name}; nothing may import {wanted}"
    elif module in OPTIONAL:
        if wanted != "__init__":
            yield f"{place}: imports {found.name}; {module} may use the public names of {where.parts[0]} only"
    elif rank[wanted] >= rank[module]:
        yield f"{place}: imports {found.name}; {module} may import from lower layers only"


def imports_of(file: Path, where: Path) -> Iterator[Import]:
    """Every import in a file, wherever it stands, except those for type checkers."""
    package = where.parts[:-1]
    waiting: list[tuple[ast.AST, bool]] = [(ast.parse(file.read_bytes(), str(where)), True)]
    while waiting:
        node, at_import_time = waiting.pop()
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, at_import_time)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            prefix = ".".join((*base, *(node.module.split(".") if node.module else ())))
            for alias in node.names:
                yield Import(f"{prefix}.{alias.name}", node.lineno, at_import_time)
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            waiting.extend((child, at_import_time) for child in node.orelse)
        else:
            inside = at_import_time and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            waiting.extend((child, inside) for child in ast.iter_child_nodes(node))


def _listed(names: frozenset[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"


if __name__ == "__main__":
    sys.exit(main())
