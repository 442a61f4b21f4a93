"""Whatever lies on disk -> frames and an index -> the three frames of a sample."""
