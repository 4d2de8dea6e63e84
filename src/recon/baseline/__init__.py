"""Baselines: a run's fingerprint in a file, and what has moved since."""
