"""The shrunk demo, for every test of it."""

from .small import small

__all__ = ["small"]
