"""The study's recipe, rewritten from its description: the baseline of the benchmarks.

This is plain code over stock transformers models that does not use the library.
"""
