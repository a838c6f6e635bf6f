"""Metrics of memorization and quality: plain functions that return a value per example."""
