"""A small server of our own for tests: it checks faults, not compatibility with anybody's."""
