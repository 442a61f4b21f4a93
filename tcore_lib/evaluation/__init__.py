"""Benchmarks on disk -> features -> label maps -> scores (docs/protocol.md)."""
