"""The API reference, docs/api/: a page per package, made from signatures and docstrings by docs/make.py.

A name is public if another package, a script, an experiment, a notebook or an example imports it, or if `tinymem` or a
package itself exports it. A page shows it as a stub: signature, fields and docstring, without code.
"""

import ast
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SRC, FOLDER = ROOT / "src", ROOT / "docs" / "api"
LEFT_OUT = {"cli", "planning", "scripts", "sweeps"}  # parts of the scripts
LEFT_OUT |= {"allocator", "folders", "inputs", "interrupts", "plugins"}  # and of the library
OUTSIDE = ("*.py", "examples/*.py", "experiments/**/*.py", "pythia_mem_data/*.py", "results/**/*.py", "results/*.ipynb")
TOP = "tinymem"
Node = ast.FunctionDef | ast.ClassDef


def pages() -> dict[Path, str]:
    """Return the text of every page by its path."""
    packages = sorted({package_of(module) for module in modules()} - LEFT_OUT)
    made = {package: page(package) for package in packages}
    filled = {package: text for package, text in made.items() if text.count("\n### ")}
    return {FOLDER / "README.md": contents(filled)} | {FOLDER / f"{name}.md": text for name, text in filled.items()}


CONTENTS = """# API reference

What the packages of `tinymem` offer to each other, to scripts and to you. Generated from signatures and docstrings by
`make docs`. These names can be imported from `tinymem` itself, which loads them on first use:

| name | module |
|---|---|
{exports}

| package | about |
|---|---|
{packages}
"""


def contents(made: dict[str, str]) -> str:
    """Return the table of contents of these pages."""
    exports = []
    for name, module in exported().items():
        package = package_of(module.removeprefix(f"{TOP}."))
        anchor = f"#{name.lower()}" if f"\n### {name}\n" in made[package] else ""
        exports.append(f"| `{name}` | [{module}]({package}.md{anchor}) |")
    packages = [f"| [{TOP}.{package}]({package}.md) | {summary(package)} |" for package in made]
    return CONTENTS.format(exports="\n".join(exports), packages="\n".join(packages))


def summary(module: str) -> str:
    """Return the first line of a module's docstring."""
    return (ast.get_docstring(modules()[module]) or "").partition("\n")[0]


def page(package: str) -> str:
    """Return the page of a package or of a module that stands alone."""
    parts = [f"# {TOP}.{package}\n"]
    for module, tree in modules().items():
        shown = [node for node in tree.body if isinstance(node, Node) and (module, node.name) in public()]
        if package_of(module) == package and shown:
            source = Path("src", *module.split("."))
            source = source / "__init__.py" if (ROOT / source).is_dir() else source.with_suffix(".py")
            first = (ast.get_docstring(tree) or "").partition("\n\n")[0]
            parts.append(f"## {TOP}.{module}\n\n```\n{first}\n```\n\n[Source](../../{source})\n")
            parts += [f"### {node.name}\n\n```python\n{stub(node)}\n```\n" for node in shown]
    return "\n".join(parts)


def stub(node: Node, indent: str = "") -> str:
    """Return a function or class without its code."""
    inner = indent + "    "
    lines = [indent + head(node)]
    if docstring := ast.get_docstring(node):
        quoted = f'"""{docstring}' + ('\n"""' if "\n" in docstring else '"""')
        lines += [(inner + line).rstrip() for line in quoted.splitlines()]
    for member in node.body if isinstance(node, ast.ClassDef) else ():
        if isinstance(member, ast.AnnAssign) and not ast.unparse(member.target).startswith("_"):
            lines.append(f"{inner}{ast.unparse(member.target)}: {ast.unparse(member.annotation)}")
        elif isinstance(member, Node) and not member.name.startswith("_"):
            lines += ["", stub(member, inner)]
    return "\n".join(lines)


def head(node: Node) -> str:
    """Return the first line of a definition."""
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(map(ast.unparse, node.bases))
        return f"class {node.name}" + (f"({bases})" if bases else "") + ":"
    returned = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"def {node.name}({ast.unparse(node.args)}){returned}:"


@cache
def modules() -> dict[str, ast.Module]:
    """Return the syntax tree of every module by its name below tinymem, "" for tinymem itself."""
    found = {}
    for path in sorted(SRC.rglob("*.py")):
        name = ".".join(path.relative_to(SRC).with_suffix("").parts)
        found[name.removesuffix("__init__").rstrip(".")] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def package_of(module: str) -> str:
    return module.partition(".")[0]


@cache
def public() -> set[tuple[str, str]]:
    """Return every public name with its module."""
    used = {(module.removeprefix(f"{TOP}."), name) for name, module in exported().items()}
    for module, tree in modules().items():
        used |= {found for found in imports(tree) if package_of(found[0]) != package_of(module) or "." not in module}
    for path in (path for pattern in OUTSIDE for path in ROOT.glob(pattern)):
        used |= set(imports(ast.parse(code_of(path))))
    return used


def exported() -> dict[str, str]:
    """Return the names that `tinymem` exports, each with its module."""
    (value,) = (
        node.value
        for node in modules()[""].body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_MODULES"
    )
    return ast.literal_eval(value)


def imports(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield what a module imports of tinymem: module below tinymem, and name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{TOP}."):
            yield from ((node.module.removeprefix(f"{TOP}."), each.name) for each in node.names)


def code_of(path: Path) -> str:
    """Return the Python code of a file or a notebook."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return text
    cells = ["".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    return "\n".join(line for line in "\n".join(cells).splitlines() if not line.startswith(("%", "!")))
