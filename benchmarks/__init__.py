"""Measurements of this package on the machine at hand; each is a module to run with ``python -m benchmarks.NAME``."""
