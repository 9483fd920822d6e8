"""The error of everything that concerns files."""

from __future__ import annotations


class FileError(ValueError):
    """A file that cannot be used as asked; the text names it and says why, in one line."""
