"""A profile -> notebooks -> tables: what turns a parameter file into results."""
