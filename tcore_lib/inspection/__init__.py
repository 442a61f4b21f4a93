"""Looking inside: features, attention, one step of the propagation."""
