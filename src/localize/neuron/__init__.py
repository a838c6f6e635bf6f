"""Neuron-level methods, one file each; they share gates.py, hidden.py and rank_one.py."""
