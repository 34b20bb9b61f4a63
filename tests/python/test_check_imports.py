"""The checker of the import rule: it passes the project as it is, and names each kind of breach."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tools" / "check_imports.py"


@pytest.fixture(scope="module")
def checker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_imports", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def crate(name: str, *dependencies: str, source: Path | None = None, kind: str | None = None) -> dict[str, Any]:
    targets = [{"kind": ["lib"], "src_path": str(source)}] if source else []
    return {"name": name, "targets": targets, "dependencies": [{"name": d, "kind": kind} for d in dependencies]}


def test_the_project_keeps_the_rule() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "import rule: kept" in done.stdout


def test_python_in_a_rust_program_is_named(checker: ModuleType) -> None:
    (fault,) = checker.link_faults(
        "polyloop v0.1.0 (/somewhere)\nrmp v0.8.15\npyo3-ffi v0.30.1\npyo3-ffi v0.30.1 (*)\n"
    )
    assert "brings pyo3-ffi into Rust programs" in fault


@pytest.mark.parametrize(
    ("name", "dependency", "complaint"),
    [
        ("polyloop-shm", "polyloop-core", "may depend on nothing of this workspace"),
        ("polyloop-core", "polyloop-shm", "may depend on nothing of this workspace"),
        ("polyloop-sim", "polyloop", "may depend on polyloop-core, polyloop-shm"),
        ("polyloop-python", "polyloop-core", "may depend on polyloop of this workspace"),
        ("polyloop-shm", "tokio", "from outside it may use libc"),
        ("polyloop-core", "rustix", "from outside it may use smallvec, thiserror"),
        ("polyloop", "pyo3", "only polyloop-python knows Python"),
    ],
)
def test_a_forbidden_dependency_of_a_crate_is_named(
    checker: ModuleType, name: str, dependency: str, complaint: str
) -> None:
    members = [crate(member) for member in checker.CRATES if member != name]
    (fault,) = checker.crate_faults({"packages": [*members, crate(name, dependency)]})
    assert name in fault
    assert dependency in fault
    assert complaint in fault


def test_crates_used_by_tests_alone_are_free(checker: ModuleType) -> None:
    assert not list(checker.crate_faults({"packages": [crate("polyloop-core", "proptest", kind="dev")]}))


def test_a_crate_that_is_not_in_the_table_is_named(checker: ModuleType) -> None:
    (fault,) = checker.crate_faults({"packages": [crate("polyloop-new")]})
    assert "polyloop-new is not in the table" in fault


def test_a_pure_crate_without_forbid_unsafe_is_named(checker: ModuleType, tmp_path: Path) -> None:
    source = tmp_path / "lib.rs"
    source.write_text("// #![forbid(unsafe_code)] in a comment does not count\n")
    (fault,) = checker.crate_faults({"packages": [crate("polyloop-core", source=source)]})
    assert "must say #![forbid(unsafe_code)]" in fault
    source.write_text("//! Decisions.\n#![forbid(unsafe_code)]\n")
    assert not list(checker.crate_faults({"packages": [crate("polyloop-core", source=source)]}))


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("pool.py", "import pickle", "only _codec.py knows pickling"),
        ("pool.py", "def f():\n    from cloudpickle import dumps", "only _codec.py knows pickling"),
        ("errors.py", "from . import pool", "errors may import from lower layers only"),
        ("errors.py", "from .pool import Pool", "errors may import from lower layers only"),
        ("process.py", "import polyloop.pool", "process may import from lower layers only"),
        ("process.py", "from polyloop import Pool", "process may import from lower layers only"),
        ("pool.py", "from .ext import progress", "nothing may import ext"),
        ("__init__.py", "from . import demo", "nothing may import demo"),
        ("demo/run.py", "from ..pool import Pool", "demo may use the public names"),
        ("_worker.py", "import cloudpickle", "only _codec.py knows pickling"),
        ("_worker.py", "import urllib.request", "at every worker's start"),
        ("_codec.py", "import cloudpickle", "at every worker's start"),
        ("surprise.py", "", "is in no layer"),
    ],
)
def test_a_forbidden_import_in_the_package_is_named(
    checker: ModuleType, tmp_path: Path, module: str, source: str, complaint: str
) -> None:
    file = tmp_path / "polyloop" / module
    file.parent.mkdir(parents=True)
    file.write_text(source)
    faults = list(checker.package_faults(tmp_path / "polyloop"))
    assert any(complaint in fault for fault in faults), faults
    assert all(f"polyloop/{module}" in fault for fault in faults)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("_codec.py", "import pickle\ndef f():\n    import cloudpickle"),
        ("_worker.py", "import asyncio\nfrom . import _codec, errors\ndef f():\n    import urllib.request"),
        ("pool.py", "from .errors import PoolClosed\nfrom .process import Process\nfrom . import _core"),
        ("__init__.py", "from .pool import Pool\nfrom .errors import PoolClosed"),
        ("errors.py", "import typing\nif typing.TYPE_CHECKING:\n    from .pool import Pool"),
        ("demo/run.py", "from polyloop import Pool\nfrom polyloop.demo.other import f\nfrom . import other"),
    ],
)
def test_a_permitted_import_passes(checker: ModuleType, tmp_path: Path, module: str, source: str) -> None:
    file = tmp_path / "polyloop" / module
    file.parent.mkdir(parents=True)
    file.write_text(source)
    assert not list(checker.package_faults(tmp_path / "polyloop"))
