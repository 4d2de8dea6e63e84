"""Scripts that make what the project ships: run by hand, not installed."""
