"""Neuron-level methods, one file each."""
