"""Run records: one JSON file per run, named by a hash of its identity, written once and atomically."""
