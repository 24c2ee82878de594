"""Without these, parts could come to import each other in circles, and the command line to load torch for its help."""

import ast
from pathlib import Path

import pytest

import glmtune

PACKAGE = Path(glmtune.__file__).parent
LAYERS = [
    {"compat"},
    {"errors", "language"},
    {"files", "hub", "ops", "pages", "json_values", "signals"},
    {"prompts"},
    {"config"},
    {"models"},
    {"data"},
    {"adapters"},
    {"loading"},
    {"planning"},
    {"inference"},
    {"evaluation"},
    {"report"},
    {"training", "export"},
    {"server", "demo", "api"},
    {"ui"},
    {"cli"},
    {"__main__"},
]
# Where a configuration is read, the start of a run with it, and a run planned by it; everything else takes a section,
# plain arguments or the plan.
CONFIGURED = {
    *("cli/setting_up.py", "config/__init__.py", "config/reading.py", "config/sections.py", "config/unknown_keys.py"),
    *("planning/start.py", "planning/plan.py", "planning/planned.py", "planning/card.py"),
    *("training/run.py", "training/inputs.py"),
}
HEIGHT = {name: height for height, names in enumerate(LAYERS) for name in names}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def _imported_parts(tree: ast.AST) -> set[str]:
    """The parts of glmtune (its top-level modules and packages) that a module imports, at any depth in it."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("glmtune.")} & HEIGHT.keys()


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.Module]:
    """The syntax trees of all modules, by their paths within the package."""
    return {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in MODULES}


def test_imports_point_downward(trees: dict[str, ast.Module]) -> None:
    upward = []
    for path, tree in trees.items():
        part = path.split("/")[0].removesuffix(".py")
        assert part in HEIGHT, f"{part} has no layer yet; name one here and in docs/design.md"
        imported = _imported_parts(tree) - {part}
        upward += [f"{path} must not import {name}" for name in imported if HEIGHT[name] >= HEIGHT[part]]
    assert upward == []


def test_the_check_sees_imports() -> None:
    tree = ast.parse("def f():\n    from glmtune.cli import main\nimport glmtune.data.formats")
    assert _imported_parts(tree) == {"cli", "data"}


def test_only_what_leads_to_the_plan_takes_the_configuration(trees: dict[str, ast.Module]) -> None:
    configured = set()
    for path, tree in trees.items():
        names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
        defined = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
        if {"RunConfig", "Start"} & (names | defined):
            configured.add(path)
    assert configured - CONFIGURED == set(), "take a section, plain arguments, or the plan"
