"""Run records: one JSON file a run, named by a hash of its identity, written once and atomically."""
