"""Who may import whom, read from the source."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ENGINE = sorted(path for path in (ROOT / "c2f").glob("*.py") if path.name != "metaembed.py")
DECODERS = ROOT / "baselines/decoders.py"
METHODS = [ROOT / "c2f/metaembed.py", *sorted({*(ROOT / "baselines").glob("*.py")} - {DECODERS})]
WITHOUT_TORCH = [
    "budget",
    "choose",
    "compare",
    "data",
    "decoding",
    "download",
    "errors",
    "evidence_figures",
    "explain",
    "figures",
    "findings",
    "grid",
    "inference",
    "memory_figures",
    "page",
    "protocols",
    "record",
    "report",
    "seeds",
    "serve",
    "settings",
    "slots",
    "stats",
]


def names(paths):
    return [f"{path.parent.name}/{path.name}" for path in paths]


def imported(path: Path, inside_functions: bool = True) -> set[str]:
    """The modules that a file imports, by their full names."""
    tree = ast.parse(path.read_text())
    found = set()
    for node in ast.walk(tree) if inside_functions else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write relative imports out"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def of_project(modules: set[str]) -> set[str]:
    return {module for module in modules if module.split(".")[0] in ("c2f", "baselines", "tests")}


def test_the_reader_sees_imports_at_the_top_and_inside_functions(tmp_path):
    (tmp_path / "a.py").write_text("import os.path\nfrom c2f import run\ndef f():\n    from baselines.x import Y\n")
    assert imported(tmp_path / "a.py") == {"os.path", "c2f", "c2f.run", "baselines.x", "baselines.x.Y"}
    assert imported(tmp_path / "a.py", inside_functions=False) == {"os.path", "c2f", "c2f.run"}


@pytest.mark.parametrize("path", METHODS, ids=names(METHODS))
def test_a_method_imports_c2f_api_and_its_decoders_and_nothing_else_of_the_project(path):
    others = {name for name in of_project(imported(path)) if not name.startswith(("c2f.api", "baselines.decoders"))}
    assert others - {"baselines"} == set()


def test_decoders_import_numpy_and_c2f_decoding_and_nothing_else():
    modules = {module for module in imported(DECODERS) if not module.startswith("c2f.decoding")}
    assert {module.split(".")[0] for module in modules} <= {"numpy", *sys.stdlib_module_names}


@pytest.mark.parametrize("path", METHODS, ids=names(METHODS))
def test_a_method_takes_only_published_names_from_the_api(path):
    import c2f.api

    taken = {module.removeprefix("c2f.api.") for module in imported(path) if module.startswith("c2f.api.")}
    assert taken <= set(c2f.api.__all__)


@pytest.mark.parametrize("path", ENGINE, ids=names(ENGINE))
def test_the_engine_imports_no_method_and_no_snakemake(path):
    modules = imported(path)
    assert not [module for module in modules if module.startswith(("baselines", "c2f.metaembed", "snakemake"))]


@pytest.mark.parametrize("path", ENGINE, ids=names(ENGINE))
def test_the_engine_names_no_method(path):
    # A name of a method module in code (not in a docstring) would be a way around the import rule.
    tree = ast.parse(path.read_text())
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    strings = [n for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    named = [n.value for n in strings if id(n) not in docstrings and re.search(r"\bbaselines\b|metaembed", n.value)]
    assert named == []


def test_the_api_publishes_exactly_what_it_imports():
    import c2f.api

    tree = ast.parse((ROOT / "c2f/api.py").read_text())
    imports = {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert imports == set(c2f.api.__all__)


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_modules_of_steps_without_models_do_not_mention_torch(name):
    modules = imported(ROOT / f"c2f/{name}.py")
    assert not [module for module in modules if module.split(".")[0] == "torch"]


def test_importing_the_steps_without_models_does_not_load_torch():
    modules = ", ".join(f"c2f.{name}" for name in [*WITHOUT_TORCH, "__main__"])
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
