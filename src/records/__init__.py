"""Run records: one JSON file a run, named by a hash of its settings, written once and atomically."""
