"""Unlearning by objective, one file per loss; they share terms.py. tinymem.training.objective trains on them."""
