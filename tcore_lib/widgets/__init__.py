"""What is looked at in a browser: the explorer, the mask painter, the report."""
