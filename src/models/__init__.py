"""TinyMem models, their attention, and the adapter that finds the MLPs of any causal language model."""
