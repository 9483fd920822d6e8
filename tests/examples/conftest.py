"""The shrunk demo: examples/serve.py serves its encoder."""

from tests.commands.demo.small import small

__all__ = ["small"]
