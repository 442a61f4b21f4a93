"""Benchmarks on disk -> features -> label maps -> scores (EVALUATION)."""
