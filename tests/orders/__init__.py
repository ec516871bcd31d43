"""Training orders that the loaders' own code gave."""
