"""The one logger of the package, ``logging.getLogger("sparse24")``.

What takes long tells it at level INFO how far it is, where the caller asked for no ``progress`` of its own.
It has no handler of its own, so nothing is printed unless the program says so::

    logging.basicConfig(level=logging.INFO)

What a user should act on is a warning or an error, never a line in a log.
"""

from __future__ import annotations

import logging

LOGGER = logging.getLogger("sparse24")


def progress(text: str) -> None:
    """One step of long work, for who listens."""
    LOGGER.info(text)
