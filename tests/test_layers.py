"""Imports go one way: a module imports its own package and layers that stand before its own."""

import ast
from collections.abc import Iterator
from pathlib import Path

SRC = Path(__file__).resolve().parents[1] / "src"
LAYERS = [
    {"errors", "lazy", "allocator", "interrupts", "packaged", "scripts"},
    {"options", "folders", "inputs", "plugins"},
    {"locks"},
    {"files"},
    {"data"},
    {"models"},
    {"regularizers", "metrics"},
    {"records"},
    {"training"},
    {"localize"},
    {"planning"},
    {"attacks"},
    {"plots", "sweeps", "cards"},
    {"pages"},
    {"leaderboard"},
]
TOP = {"cli"}  # consoles and flags; only scripts stand above


def is_script(path: Path) -> bool:
    """A file that is run and not imported, such as src/localize/prod_grad.py: it may import anything.

    with_parent.py, which imports nothing, is none: others start it by its path.
    """
    text = path.read_text(encoding="utf-8")
    return 'if __name__ == "__main__":' in text and "from tinymem" in text


def layer(module: str) -> int:
    package = module.partition(".")[0]
    return next(i for i, names in enumerate([*LAYERS, TOP]) if package in names)


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
    scripts = {module_of(path) for path in SRC.rglob("*.py") if is_script(path)}
    wrong, seen = [], 0
    for path in SRC.rglob("*.py"):
        module = module_of(path)
        for other in imported(path) if module != "__init__" else ():
            seen += 1
            same = other.partition(".")[0] == module.partition(".")[0]
            if other in scripts or not (module in scripts or same or layer(other) < layer(module)):
                wrong.append(f"{module} imports {other}")
    assert seen > 300 and 4 <= len(scripts) <= 6 and not wrong


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__")
