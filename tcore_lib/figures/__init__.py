"""Arrays in, figures out. Nothing here reads a file or computes a score."""
