"""Products with few tokens and cold weights on a GPU."""

from __future__ import annotations

from ..table import Setting, Table
from . import linear

TOKENS = (1, 2, 4, 8, 16)


def tables(setting: Setting) -> list[Table]:
    """A row a dtype, shape and count of tokens."""
    return linear.few(setting, TOKENS[::4] if setting.quick else TOKENS)
