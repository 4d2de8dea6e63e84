"""Plots of activations: ``data`` computes what is to be seen, ``figures`` draws it.

A function of the first returns a small frozen dataclass, one of the second takes it and
returns a matplotlib Figure. matplotlib is imported when something is drawn.
"""
