"""The study's recipe, written anew from its description: what the benchmarks measure the library against.

Plain code over stock transformers models; nothing here uses the library.
"""
