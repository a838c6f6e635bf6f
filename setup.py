"""Install the folder src/ as the package `tinymem`: `pip install -e .`"""

from setuptools import find_packages, setup

packages = ["tinymem"] + [f"tinymem.{name}" for name in find_packages("src")]

setup(
    name="tinymem",
    version="0.1.0",
    description="Train small language models that memorize, measure it, and unlearn it",
    license="MIT",
    python_requires=">=3.10",
    packages=packages,
    package_dir={"tinymem": "src"},
    package_data={"tinymem.models": ["*.json"], "tinymem.pages": ["templates/*"]},
)
