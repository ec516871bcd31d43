"""Servers for tests: one of our own for faults, and what is needed to run and quote real ones."""
