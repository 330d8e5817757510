"""Rules for imports: no cycles, an order of packages, and a single place for some libraries."""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from conftest import ROOT

SOURCE = ROOT / "src" / "ilf"

# The packages and modules directly under src/ilf, from top to bottom. A module imports only from its own package and
# from lower lines. This includes imports within functions and for types.
LAYERS = (
    ("__main__",),
    ("cli",),
    ("build",),
    ("stages",),
    ("outputs", "turns"),
    ("annotators", "measurements", "training_set"),
    ("llm_answers",),
    ("runner", "resources", "checks"),
    ("refiners",),
    ("training", "annotation"),
    ("analysis", "run_folder", "sampling", "scoring", "tracking", "store"),
    ("settings",),
    ("feedback", "refinements"),
    ("models",),
    ("protocols",),
    ("tasks",),
    ("components", "executors"),
    ("files", "distributed", "progress", "sandbox", "ranges"),
    ("algorithm", "paths", "disk", "shutdown", "installation"),
    ("types", "code_digest", "lazy", "ilf"),
)
# Third-party packages that single modules of the sandbox import: for a cluster, or for values of these packages.
OPTIONAL_PACKAGES = {"cluster": {"ray"}, "worker.arrays": {"numpy"}, "worker.frames": {"numpy", "pandas"}}
# Imports that break the order.
EXCEPTIONS: set[tuple[str, str]] = set()


def modules(source: Path) -> dict[str, Path]:
    """Return the modules of a package, by dotted name."""
    files = {".".join(f.relative_to(source.parent).with_suffix("").parts): f for f in sorted(source.rglob("*.py"))}
    return {name.removesuffix(".__init__"): file for name, file in files.items()}


def imports(name: str, file: Path, own: Iterable[str] = ()) -> set[str]:
    """Return the modules that a module imports anywhere in its source.

    For `from a import b`, this is a.b if it is one of the modules `own`, else a.
    """
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            start = ".".join([*above, *([node.module] if node.module else [])])
            inner = {f"{start}.{alias.name}" for alias in node.names} & set(own)
            found |= inner | ({start} if len(inner) < len(node.names) else set())
    return found - {name}


def graph(source: Path) -> dict[str, set[str]]:
    """Return the modules of the same package that each module imports."""
    own = modules(source)
    return {name: imports(name, file, own) & own.keys() for name, file in own.items()}


def find_cycle(edges: dict[str, set[str]]) -> list[str]:
    """Return the modules of an import cycle, or an empty list if there is none."""
    try:
        graphlib.TopologicalSorter(edges).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def package_of(module: str) -> str:
    return [*module.split(".")[1:], module][0]


IMPORT_FORMS = {
    "at the start": "from package.one import x",
    "as a module": "from package import one",
    "by its name": "import package.one as first",
    "within a function": "def f():\n    from package.one import x",
    "for types": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from package.one import x",
    "relative": "from .one import x",
    "relative, as a module": "from . import one",
    "by the package": "from package import f",
}


@pytest.mark.parametrize("way", IMPORT_FORMS)
def test_cycle_is_found_with_every_form_of_import(way, tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("from package.one import f" if way == "by the package" else "")
    (package / "one.py").write_text("import package.two")
    (package / "two.py").write_text(IMPORT_FORMS[way])
    assert {"package.one", "package.two"} <= set(find_cycle(graph(package)))
    (package / "two.py").write_text("import sys")
    assert not find_cycle(graph(package))


def test_there_are_no_import_cycles():
    edges = graph(SOURCE)
    assert not find_cycle({name: {n for n in found if (name, n) not in EXCEPTIONS} for name, found in edges.items()})


def test_packages_import_only_from_lower_layers():
    edges, heights = graph(SOURCE), {name: -i for i, line in enumerate(LAYERS) for name in line}
    assert {package_of(name) for name in edges} == set(heights), "each room has its line, and each name there its room"
    up = {
        (name, other)
        for name, found in edges.items()
        for other in found
        if package_of(name) != package_of(other) and heights[package_of(name)] <= heights[package_of(other)]
    }
    assert up == EXCEPTIONS


def test_packages_that_need_no_model_do_not_import_torch():
    light = ("checks", "annotation", "feedback", "scoring", "analysis", "tasks", "store", "sandbox", "files", "types")
    names = [n for n in modules(SOURCE) if package_of(n) in light and not n.endswith(("__main__", *OPTIONAL_PACKAGES))]
    assert {package_of(name) for name in names} == set(light)
    code = f"import importlib, sys\nfor name in {names}:\n    importlib.import_module(name)\n"
    code += "print({'torch', 'pytorch_lightning', 'transformers', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(SOURCE.parent)}, capture_output=True)
    assert (done.returncode, done.stdout) == (0, b"set()\n"), done.stderr.decode()


def test_libraries_are_imported_only_where_allowed():
    own = modules(SOURCE)
    found = {name: imports(name, file, own) for name, file in own.items()}
    standard = set(sys.stdlib_module_names) | {"__future__"}
    assert {i.split(".")[0] for i in found["ilf.types"]} <= standard
    assert {i for i in found["ilf.algorithm"] if i.startswith("ilf")} == {"ilf.types"}
    for name, imported in found.items():
        roots = {i.split(".")[0] for i in imported}
        if package_of(name) != "cli":
            assert not roots & {"hydra", "omegaconf"}, name
        if name != "ilf.tracking":
            assert "wandb" not in roots, name
        if package_of(name) == "sandbox":
            assert roots <= standard | {"ilf"} | OPTIONAL_PACKAGES.get(name.removeprefix("ilf.sandbox."), set()), name
            assert all(i == "ilf.types" or package_of(i) == "sandbox" for i in imported if i.startswith("ilf")), name
        if package_of(name) in ("tasks", "feedback", "analysis", "annotation", "scoring"):
            assert not roots & {"torch", "pytorch_lightning"}, name
        if name != "ilf.stages":
            assert "ilf.algorithm" not in imported, name
        if name != "ilf.annotation.server":  # the only module that serves pages
            assert not roots & {"fastapi", "uvicorn", "starlette", "pygments"}, name
        assert "utils" not in name
