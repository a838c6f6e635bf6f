"""TinyMem: train small language models that memorize, measure it, and unlearn it.

Re-creates and extends "Mitigating Memorization in Language Models" (ICLR 2025).

The names that notebooks use most can be imported from here, as in `from tinymem import load_model`. They load on first
use, so `import tinymem` takes milliseconds.
"""

import importlib

__version__ = "0.1.0"

_MODULES = {  # name -> its module
    "DataSettings": "tinymem.data.settings",
    "METHODS": "tinymem.localize.registry",
    "RunSettings": "tinymem.training.settings",
    "TaskSettings": "tinymem.localize.task",
    "Zeros": "tinymem.models.edit",
    "applied": "tinymem.models.edit",
    "apply": "tinymem.models.edit",
    "decoder": "tinymem.data.decode",
    "drop_top": "tinymem.localize.ranking",
    "evaluate": "tinymem.metrics.evaluate",
    "find_mlps": "tinymem.models.adapter",
    "load_dataset": "tinymem.data.build",
    "load_details": "tinymem.training.checkpoint",
    "load_model": "tinymem.models.tinymem",
    "load_records": "tinymem.records.table",
    "memorized": "tinymem.metrics.memorization",
    "open_causal_lm": "tinymem.models.production",
    "unlearning_task": "tinymem.localize.task",
}
__all__ = ["__version__"] + list(_MODULES)


def __getattr__(name: str):
    """Import a name of `_MODULES` on first use (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module 'tinymem' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
