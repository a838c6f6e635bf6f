"""Install the folder src/ as the package `tinymem`: `pip install .`, or `pip install -e .` to work on it.

Everything else about the package is in pyproject.toml.
"""

import runpy
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

SCRIPTS = "tinymem.scripts"
OUTSIDE = runpy.run_path("src/scripts/__init__.py")["OUTSIDE"]


class BuildWithScripts(build_py):
    """Adds the scripts outside src/ as modules of tinymem.scripts, so that `tinymem` works without the repository."""

    def find_package_modules(self, package, package_dir):
        modules = super().find_package_modules(package, package_dir)
        return modules + [(SCRIPTS, Path(path).stem, path) for path in OUTSIDE if package == SCRIPTS]


setup(
    packages=["tinymem", *(f"tinymem.{name}" for name in find_packages("src"))],
    package_dir={"tinymem": "src"},
    package_data={"": ["*.json", "*.html", "templates/*", "py.typed"]},  # in any package
    cmdclass={"build_py": BuildWithScripts},
)
