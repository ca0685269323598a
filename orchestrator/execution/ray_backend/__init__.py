"""The Ray back end: stage workers from a pool, groups of workers under Ray Train, one account of what they hold."""

from raydistill.execution.ray_backend.backend import RayBackend

__all__ = ["RayBackend"]
