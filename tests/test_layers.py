"""Imports go one way: a module imports its own package and layers that stand before its own."""

import ast
from collections.abc import Iterator
from pathlib import Path

SRC = Path(__file__).resolve().parents[1] / "src"
LAYERS = [
    {"errors", "lazy", "allocator", "interrupts", "tables"},
    {"options", "folders", "inputs", "plugins"},
    {"locks"},
    {"files"},
    {"data"},
    {"models"},
    {"regularizers", "metrics"},
    {"records"},
    {"training"},
    {"localize"},
    {"attacks"},
    {"plots", "sweeps"},
    {"scripts"},
]
SCRIPTS = {"cli", "training.console", "localize.console", "localize.flags", "sweeps.console"}
SCRIPTS |= {"localize.localize_memorization", "localize.prod_grad", "localize.localize_hp_sweep"}
SCRIPTS |= {"records.__main__"}


def package(module: str) -> str:
    return "scripts" if module in SCRIPTS else module.partition(".")[0]


def layer(module: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if package(module) in names)


def imported(path: Path) -> Iterator[str]:
    """What a file imports of the library, imports within functions too, as names below `tinymem`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (each.name.removeprefix("tinymem.") for each in node.names if each.name.startswith("tinymem."))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "tinymem":
            base = node.module.removeprefix("tinymem").lstrip(".")
            for each in node.names:
                full = f"{base}.{each.name}".lstrip(".")
                place = SRC / full.replace(".", "/")
                yield full if place.is_dir() or place.with_suffix(".py").exists() else base


def test_imports_go_one_way():
    wrong, seen = [], 0
    for path in SRC.rglob("*.py"):
        module = ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__")
        for other in imported(path) if module != "__init__" else ():
            seen += 1
            if not (layer(other) < layer(module) or package(other) == package(module)):
                wrong.append(f"{module} imports {other}")
    assert seen > 300 and not wrong
