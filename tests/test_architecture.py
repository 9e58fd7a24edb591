"""The import rules of the package, the length of its files and functions, and what an import may load."""

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

LAYERS = (
    ("ingredients",),
    ("config_fields",),
    ("config_distill", "config_model"),
    ("config",),
    ("runtime", "sampling"),
    ("audio", "vocabulary"),
    ("data", "models"),
    ("evaluation", "pretraining"),
    ("aggregation", "export", "tagging"),
    ("training",),
    ("labeling", "plan"),
    ("cli",),
)
"""The packages, bottom up: each one imports only itself and packages of the rows above it."""
DEVICE = {"flax", "jax", "jaxlib", "optax", "orbax"}
"""Libraries that loader workers must not import."""
HEAVY = DEVICE | {"grain", "numpy", "scipy", "sklearn", "soundfile", "tensorboardX", "torch"}
"""Libraries that take long to import."""
WITHOUT_DEVICES = ("data.loader", "data.datasets", "labeling.rules", "tagging.result", "evaluation.metrics")
"""Modules that a process imports which computes nothing on a device."""
DEFERRED_LIBRARIES = {
    "absl",
    "array_record",
    "fcntl",
    "h5py",
    "jax",
    "librosa",
    "matplotlib",
    "mlflow",
    "orbax",
    "pandas",
    "platformdirs",
    "pooch",
    "requests",
    "scipy",
    "sounddevice",
    "tensorboardX",
    "torch",
    "wandb",
}
"""Libraries imported inside functions: optional, tied to a platform or to a download, or slow and rarely needed."""
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
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return
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


def package(module: str) -> str:
    """The top-level package (or module) that a module belongs to; empty for psla_jax itself."""
    return short(module).partition(".")[0]


def library(target: str) -> str:
    return target.partition(".")[0]


def reachable(module: str) -> set[str]:
    """The modules of this package that importing one brings in, itself included."""
    found, waiting = {module}, [module]
    while waiting:
        new = own(waiting.pop()) - found
        found |= new
        waiting += new
    return found


every_module = pytest.mark.parametrize("module", modules())


def test_the_package_was_found():
    assert {"psla_jax", "psla_jax.config", "psla_jax.data.loader", "psla_jax.models.psla"} <= set(modules())
    assert all(target in modules() for module in modules() for target in own(module))
    assert own("psla_jax.audio.frontend") == {"psla_jax.config", "psla_jax.runtime.traced_devices"}


def test_every_package_has_its_layer():
    entries = {package(module) for module in modules()} - {""}
    assert sorted(entries) == sorted(name for layer in LAYERS for name in layer)


@every_module
def test_a_package_imports_only_itself_and_the_layers_below(module: str):
    level = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    for target in own(module) - {PACKAGE}:
        below = package(module) == "" or level[package(target)] < level[package(module)]
        assert below or package(target) == package(module), f"{module} imports {target}"


def test_imports_make_no_cycle():
    order = TopologicalSorter({module: own(module) for module in modules()})
    try:
        order.prepare()
    except CycleError as error:
        pytest.fail("a cycle of imports: " + " -> ".join(reversed(error.args[1])))


@every_module
def test_only_commands_and_optional_libraries_are_imported_inside_functions(module: str):
    for found in (i for i in imports(module) if i.deferred):
        if within(found.target, PACKAGE):
            assert package(module) in ("", "cli"), f"{module}:{found.line} defers {found.target}"
        elif package(module) != "cli":
            assert library(found.target) in DEFERRED_LIBRARIES, f"{module}:{found.line} defers {found.target}"


@pytest.mark.parametrize("module", WITHOUT_DEVICES)
def test_host_side_code_imports_no_device_library(module: str):
    for name in reachable(f"{PACKAGE}.{module}"):
        assert {library(i.target) for i in imports(name)} & DEVICE == set(), f"{module} imports {name}"


def test_the_command_line_loads_only_its_parser_before_it_knows_the_command():
    loaded = {library(i.target) for i in imports("psla_jax.cli.main") if not i.deferred}
    assert loaded - sys.stdlib_module_names <= {"tyro", PACKAGE}


@every_module
def test_every_library_is_declared(module: str):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    needed = distributions(project["dependencies"])
    names = ("cuda", "convert", "hdf5", "listen", "mlflow", "onnx", "pandas", "plot", "wandb")
    optional = needed.union(*(distributions(extras[name]) for name in names))
    if module.startswith(f"{PACKAGE}.export."):  # Imported where it is used.
        needed = optional
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


def test_the_wheel_contains_every_package_and_the_configs():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    packages = {name for name, path in modules().items() if path.name == "__init__.py"}
    assert set(setuptools["packages"]) == packages | {f"{PACKAGE}.configs"}
    assert setuptools["package-dir"] == {f"{PACKAGE}.configs": "configs"}


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
    loaded = loaded_by("psla_jax.cli.main")
    assert {package(name) for name in loaded if within(name, PACKAGE)} == {"", "cli", "runtime"}
    assert {library(name) for name in loaded} & HEAVY == set()


def test_tagging_loads_nothing_that_only_training_needs():
    loaded = {library(name) for name in loaded_by("psla_jax.tagging.tagger")}
    assert loaded & {"grain", "librosa", "matplotlib", "pandas", "scipy", "sklearn", "tensorboardX", "torch"} == set()


@pytest.mark.parametrize("name", psla_jax.__all__)
def test_a_public_name_is_documented_and_comes_from_its_module(name: str):
    value = getattr(psla_jax, name)
    assert value.__name__.rpartition(".")[2] == {"load": "load_tagger"}.get(name, name)
    assert getattr(value, "__module__", value.__name__).startswith("psla_jax.")
    assert value.__doc__
    assert name in dir(psla_jax)


def test_type_checkers_see_the_public_names():
    (block,) = (node for node in tree(PACKAGE).body if isinstance(node, ast.If))
    *found, load = block.body
    names = [alias.asname for node in found if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert ast.unparse(load) == "load = load_tagger"
    assert sorted([*map(str, names), "load"]) == psla_jax.__all__
    assert (ROOT / PACKAGE / "py.typed").is_file()


def test_a_name_that_is_not_public_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'psla_jax' has no attribute 'build_modle'"):
        psla_jax.build_modle  # noqa: B018 - asking for it is the test
    assert psla_jax.__all__ == sorted(set(psla_jax.__all__))
