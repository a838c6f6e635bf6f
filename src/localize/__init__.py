"""Unlearning by localization: find the neurons or weights that hold memorized sequences, and set them to zero."""
