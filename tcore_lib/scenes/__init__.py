"""The embedded default: rendered videos and benchmarks in their real formats."""
