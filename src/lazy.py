"""Importing this module makes torch and numpy load on first use instead of on import.

Scripts import it first, so that `--help` and a mistyped flag answer at once (torch alone takes seconds to load),
while every file of the library keeps its plain `import torch` on top.
"""

import importlib.abc
import importlib.machinery
import sys
import threading
import types

HEAVY = ("numpy", "torch")
_LOCK = threading.RLock()  # one for all modules: loading torch loads numpy too


class _LazyModule(types.ModuleType):
    """A module that runs its code when the first of its attributes is asked for.

    The standard library's LazyLoader does not serve: a second `import torch` anywhere asks for `__spec__`, which
    makes it load.
    """

    def __getattribute__(self, name):
        if name != "__spec__":
            _load(self)
        return types.ModuleType.__getattribute__(self, name)


def _load(module):
    """Run the module's code, once. Other threads that touch the module meanwhile wait here until it is whole."""
    with _LOCK:  # re-entrant, for the module's own code touches the module as well
        spec = module.__spec__
        lazy = spec.loader
        if not isinstance(lazy, _LazyLoader):  # loaded by another thread, or being loaded by this one
            return
        if lazy.interrupted:  # half of it has run, and torch does not survive a second time
            raise KeyboardInterrupt(f"the import of {spec.name} was interrupted")
        spec.loader = module.__loader__ = lazy.loader
        try:
            lazy.loader.exec_module(module)
        except BaseException as error:
            lazy.interrupted = not isinstance(error, Exception)
            spec.loader = lazy  # the next touch tries again
            raise
        if type(module) is _LazyModule:  # some modules set a class of their own
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
    """Make imports of HEAVY lazy from here on; a second time changes nothing."""
    if not any(type(finder).__name__ == "_LazyFinder" for finder in sys.meta_path):  # by name: a reload has new classes
        sys.meta_path.insert(0, _LazyFinder())


install()
