"""Importing this module makes torch and numpy load on first use instead of on import.

Scripts import it first, so that `--help` and a mistyped flag answer at once (torch alone takes seconds to load),
while every file of the library keeps its plain `import torch` on top.
"""

import importlib.abc
import importlib.machinery
import sys
import types

HEAVY = ("numpy", "torch")


class _LazyModule(types.ModuleType):
    """A module that runs its code when the first of its attributes is asked for.

    The standard library's LazyLoader does not serve: a second `import torch` anywhere asks for `__spec__`, which
    makes it load.
    """

    def __getattribute__(self, name):
        if name == "__spec__":
            return object.__getattribute__(self, name)
        object.__setattr__(self, "__class__", types.ModuleType)
        self.__spec__.loader.load(self)
        return getattr(self, name)


class _LazyLoader(importlib.abc.Loader):
    def __init__(self, loader):
        self.loader = loader

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module):
        object.__setattr__(module, "__class__", _LazyModule)

    def load(self, module):
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)


class _LazyFinder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name not in HEAVY:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            spec.loader = _LazyLoader(spec.loader)
        return spec


sys.meta_path.insert(0, _LazyFinder())
