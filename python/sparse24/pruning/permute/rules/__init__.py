"""How each operator of ATen takes channels along: a rule a file of a kind, in one table."""

from __future__ import annotations

from . import elementwise, layers, products, views  # noqa: F401  they enter their rules
from .registry import RULES, Call, unknown

__all__ = ["RULES", "Call", "unknown"]
