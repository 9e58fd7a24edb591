"""Who may import whom, how long a file and a function may be, and what an import may load."""

from __future__ import annotations

import ast
import functools
import json
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import psla_jax

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "psla_jax"
MAX_FILE, MAX_FUNCTION = 450, 60

DEVICE = {"flax", "jax", "jaxlib", "optax", "orbax"}
"""What host-side code must not import: loader workers run it."""
HEAVY = DEVICE | {"grain", "numpy", "scipy", "sklearn", "soundfile", "tensorboardX", "torch"}
"""What takes long to import."""
TAGGING_ON_THE_HOST = (
    *("ahead", "classes", "clip", "events", "folder", "inbox", "ledger", "lettering", "microphone", "output", "pipe"),
    *("result", "share", "strip", "windows"),
)
HOST_SIDE = (
    *("config", "ontology", "metrics", "shards", "audio", "sampling.balance", "sampling.mixup", "data"),
    *("scores", "labeling", "score_files", "enhancement", "reliability", "calibration", "calibration_fit"),
    *(f"tagging.{name}" for name in TAGGING_ON_THE_HOST),
)
OWN_IMPORTS_DEFERRED = {"cli", "commands"}
"""Modules that import their own package inside functions: a command loads what it needs."""
DEFERRED_LIBRARIES = {
    "absl",
    "array_record",
    "fcntl",
    "jax",
    "librosa",
    "matplotlib",
    "orbax",
    "pandas",
    "platformdirs",
    "pooch",
    "requests",
    "scipy",
    "sounddevice",
    "tensorboardX",
    "torch",
}
"""Imported where they are used: optional, tied to a platform or to a download, or slow and needed once a run."""
DYNAMIC = {"", "cli", "models.tagger"}
"""Modules that import by name: the lazy tables of the package and of its commands, and models that a config names."""
ROOMS = {
    "config": (),
    "files": (),
    "ontology": ("files", "terminal"),
    "terminal": (),
    "metrics": (),
    "shards": (),
    "audio": ("shards",),
    "cache": ("files",),
    "compiler": (),
    "download": (),
    "journal": ("terminal",),
    "kept_programs": ("cache",),
    "kept_weights": ("cache", "files"),
    "launch": ("config",),
    "locks": (),
    "processes": ("config", "launch", "terminal"),
    "frontend": ("config",),
    "sampling": (),
    "models": ("config", "models"),
    "data": ("audio", "cache", "config", "data", "download", "files", "ontology", "sampling", "shards"),
    "scores": ("files", "metrics"),
    "labeling": ("config", "data", "ontology"),
    "score_files": ("data", "files", "labeling", "ontology", "scores"),
    "reliability": (),
    "calibration": ("files", "ontology"),
    "calibration_fit": ("calibration",),
    "tagging": tuple(
        [
            *("audio", "calibration", "checkpoints", "compiler", "config", "files", "frontend", "kept_programs"),
            *("locks", "models", "ontology", "tagging", "terminal"),
        ]
    ),
}
"""What the rooms that others build on may import of this package."""
DISTRIBUTIONS = {
    "jaxlib": "jax",
    "absl": "absl-py",
    "orbax": "orbax-checkpoint",
    "sklearn": "scikit-learn",
    "array_record": "array-record",
}
"""Libraries whose name in the package index is another."""


@dataclass(frozen=True)
class Import:
    """One imported module; `line` is where, `deferred` whether inside a function."""

    target: str
    line: int
    deferred: bool


@functools.cache
def modules() -> dict[str, Path]:
    """The files of the package by module name; a package has the name of its folder."""
    paths = sorted((ROOT / PACKAGE).rglob("*.py"))
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


@functools.cache
def tree(module: str) -> ast.Module:
    return ast.parse(modules()[module].read_text(encoding="utf-8"))


@functools.cache
def imports(module: str) -> tuple[Import, ...]:
    found: list[Import] = []

    def visit(node: ast.AST, deferred: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, node.lineno, deferred) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno} imports relatively; the house names modules in full"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.append(Import(inner if inner in modules() else str(node.module), node.lineno, deferred))
        inside = deferred or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(tree(module), False)
    return tuple(found)


def own(module: str) -> set[str]:
    """The modules of this package that a module imports, wherever it does."""
    return {i.target for i in imports(module) if within(i.target, PACKAGE)}


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def short(module: str) -> str:
    return module.removeprefix(PACKAGE).removeprefix(".")


def may_defer(module: str) -> bool:
    """Whether a module loads what it needs when it is called."""
    return any(within(short(module), room) for room in OWN_IMPORTS_DEFERRED)


def library(target: str) -> str:
    return target.partition(".")[0]


def everything_under(module: str) -> dict[str, tuple[str, ...]]:
    """All modules of this package that importing one brings in, each with the way that leads to it."""
    ways: dict[str, tuple[str, ...]] = {module: (module,)}
    waiting = [module]
    while waiting:
        at = waiting.pop()
        for target in own(at) - set(ways):
            ways[target] = (*ways[at], target)
            waiting.append(target)
    return ways


every_module = pytest.mark.parametrize("module", modules())


def test_the_package_was_found():
    assert {"psla_jax", "psla_jax.config", "psla_jax.data.pipeline", "psla_jax.models.tagger"} <= set(modules())
    assert all(target in modules() for module in modules() for target in own(module))
    assert own("psla_jax.frontend") == {"psla_jax.config"}


def test_imports_make_no_cycle():
    order = TopologicalSorter({module: own(module) for module in modules()})
    try:
        order.prepare()
    except CycleError as error:
        pytest.fail("a cycle of imports: " + " -> ".join(reversed(error.args[1])))


@every_module
def test_no_import_is_deferred(module: str):
    for found in (i for i in imports(module) if i.deferred):
        if within(found.target, PACKAGE):
            assert may_defer(module), f"{module}:{found.line} defers {found.target}"
        elif not may_defer(module):
            assert library(found.target) in DEFERRED_LIBRARIES, f"{module}:{found.line} defers {found.target}"


@every_module
def test_no_import_by_name_hides_another_one(module: str):
    names = {node.id for node in ast.walk(tree(module)) if isinstance(node, ast.Name)}
    dynamic = "__import__" in names or any(
        library(i.target) == "importlib" and not within(i.target, "importlib.metadata") for i in imports(module)
    )
    assert not dynamic or short(module) in DYNAMIC


@every_module
def test_host_side_code_reaches_no_device_library(module: str):
    if not any(within(short(module), room) for room in HOST_SIDE):
        return
    for reached, way in everything_under(module).items():
        bad = sorted({library(i.target) for i in imports(reached)} & DEVICE)
        assert not bad, f"{' -> '.join(way)} imports {', '.join(bad)}"


@every_module
def test_a_room_imports_only_what_it_may(module: str):
    room = next((room for room in ROOMS if within(short(module), room)), None)
    if room is None:
        return
    for target in own(module):
        assert any(within(short(target), other) for other in ROOMS[room]), f"{module} imports {target}"


def test_nothing_imports_the_command_line():
    apart = [module for module in modules() if not within(short(module), "commands")]
    assert [m for m in apart if any(short(t) == "cli" or within(short(t), "commands") for t in own(m))] == []


def test_the_command_line_loads_only_its_parser_before_it_knows_the_command():
    loaded = {library(i.target) for i in imports("psla_jax.cli") if not i.deferred}
    assert loaded - sys.stdlib_module_names <= {"tyro", PACKAGE}


@every_module
def test_every_library_is_declared(module: str):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    needed = distributions(project["dependencies"])
    names = ("cuda", "convert", "listen", "pandas", "plot")
    optional = needed.union(*(distributions(extras[name]) for name in names))
    for found in imports(module):
        name = library(found.target)
        if name != PACKAGE and name not in sys.stdlib_module_names:
            declared = DISTRIBUTIONS.get(name, name) in (optional if found.deferred else needed)
            assert declared, f"{module}:{found.line} imports {name}, which pyproject.toml does not declare"


def distributions(requirements: list[str]) -> set[str]:
    return {requirement.partition("[")[0].partition(">")[0].partition("=")[0].strip() for requirement in requirements}


@every_module
def test_a_file_and_its_functions_are_short(module: str):
    lines = len(modules()[module].read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_FILE, f"{module} has {lines} lines: it has two jobs"
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = int(node.end_lineno or 0) - node.lineno + 1
            assert length <= MAX_FUNCTION, f"{module}.{node.name} has {length} lines: it has two jobs"


def test_the_inner_packages_are_empty():
    inner = [path for path in modules().values() if path.name == "__init__.py" and path.parent.name != PACKAGE]
    assert inner
    assert [path for path in inner if path.read_text(encoding="utf-8").strip()] == []


PROBE = """
import json, sys
before = set(sys.modules)
import {module}
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def loaded_by(module: str) -> list[str]:
    """What a fresh interpreter has loaded after one import."""
    command = [sys.executable, "-c", PROBE.format(module=module)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=True)
    return json.loads(done.stdout)


def test_importing_the_package_loads_nothing_but_the_standard_library():
    loaded = loaded_by(PACKAGE)
    assert [name for name in loaded if within(name, PACKAGE)] == [PACKAGE]
    assert {library(name) for name in loaded} - sys.stdlib_module_names == {PACKAGE}


def test_the_command_line_starts_without_anything_heavy():
    loaded = loaded_by("psla_jax.cli")
    own = ["psla_jax.cache", "psla_jax.cli", "psla_jax.files", "psla_jax.runtime", "psla_jax.terminal"]
    assert [name for name in loaded if within(name, PACKAGE)] == [PACKAGE, *own]
    assert {library(name) for name in loaded} & HEAVY == set()


def test_tagging_loads_nothing_that_only_training_needs():
    loaded = {library(name) for name in loaded_by("psla_jax.tagging.tagger")}
    assert loaded & {"grain", "librosa", "matplotlib", "pandas", "scipy", "sklearn", "tensorboardX", "torch"} == set()


@pytest.mark.parametrize("name", psla_jax.__all__)
def test_a_public_name_is_the_one_of_its_home(name: str):
    found = getattr(psla_jax, name)
    assert found.__name__ == name
    assert found.__module__.startswith("psla_jax.")
    assert found.__doc__
    assert name in dir(psla_jax)


def test_a_name_that_is_not_public_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'psla_jax' has no attribute 'build_modle'"):
        psla_jax.build_modle  # noqa: B018 - asking for it is the test
    assert psla_jax.__all__ == sorted(set(psla_jax.__all__))
