"""The soft-target store: writing, reading, combining."""
