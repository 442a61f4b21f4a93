"""Processes, devices and locks: what this machine lends and what may go wrong with it."""
