"""Decides what runs, in which order, and trains it."""
