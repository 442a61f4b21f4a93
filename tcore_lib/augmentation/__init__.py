"""Frames -> crops, and the masks on them."""
