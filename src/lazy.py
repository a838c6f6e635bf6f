"""Lazy imports: after importing this module, torch and numpy load on first use.

Scripts import it first, so `--help` and mistyped flags get an answer at once (torch alone takes seconds to load), while
every file of the library keeps a plain `import torch` at the top.
"""

import importlib.abc
import importlib.machinery
import sys
import threading
import types

HEAVY = ("numpy", "torch")
_LOCK = threading.RLock()  # shared by all modules: loading torch loads numpy too


class _LazyModule(types.ModuleType):
    """A module that runs its code on the first access to an attribute.

    The standard library's LazyLoader does not suffice: a second `import torch` anywhere reads `__spec__`, which loads
    the module.
    """

    def __getattribute__(self, name):
        if name != "__spec__":
            _load(self)
        return types.ModuleType.__getattribute__(self, name)


def _load(module):
    """Run the module's code once. Other threads that access the module wait here until it is loaded."""
    with _LOCK:  # re-entrant, since the module's own code accesses the module
        spec = module.__spec__
        lazy = spec.loader
        if not isinstance(lazy, _LazyLoader):  # already loaded by another thread, or being loaded by this one
            return
        if lazy.interrupted:  # half of its code has run, and torch cannot be loaded again
            raise KeyboardInterrupt(f"the import of {spec.name} was interrupted")
        spec.loader = module.__loader__ = lazy.loader
        try:
            lazy.loader.exec_module(module)
        except BaseException as error:
            lazy.interrupted = not isinstance(error, Exception)
            spec.loader = lazy  # the next access tries again
            raise
        kind = type(module)
        if kind is _LazyModule:  # some modules set their own class
            module.__class__ = types.ModuleType


class _LazyLoader(importlib.abc.Loader):
    def __init__(self, loader):
        self.loader = loader
        self.interrupted = False

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module):
        module.__class__ = _LazyModule


class _LazyFinder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name not in HEAVY:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            spec.loader = _LazyLoader(spec.loader)
        return spec


def install():
    """Make later imports of HEAVY lazy. A second call has no effect."""
    if not any(type(finder).__name__ == "_LazyFinder" for finder in sys.meta_path):  # by name: a reload has new classes
        sys.meta_path.insert(0, _LazyFinder())


install()
