"""Unlearning by objective, one file per loss; they share terms.py. What trains on them: tinymem.training.objective."""
