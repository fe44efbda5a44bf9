"""Benchmarks; each module prints its figures with `python -m benchmarks.NAME`."""
