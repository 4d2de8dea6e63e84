"""Renders results, for a terminal and as JSON; computes nothing."""
