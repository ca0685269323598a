"""Scheduler, local and Ray back ends, submission."""
