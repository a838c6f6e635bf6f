"""TinyMem: train small language models that memorize, measure it, and unlearn it.

Re-creates and extends "Mitigating Memorization in Language Models" (ICLR 2025).
"""

__version__ = "0.1.0"
