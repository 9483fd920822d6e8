"""Recipes over a :class:`~sparse24.Sparsifier`: what happens to its masks in which step of a training.

The talk's recipe needs none of this: train dense, ``prune()``, ``attach(optimizer)``, train again. Others:

* :func:`sr_ste`, :func:`transposable`, :func:`repruning`, :func:`warm_up`: masks that change while it trains
  (:class:`DynamicSparsity`);
* :func:`carry`: masks go on to the network of the next phase, with new heads and changed layers;
* :func:`rates_of` and :class:`Replay`: the first training's learning rates again, in fewer steps;
* :func:`distillation`: a loss that also follows the dense network.
"""

from .dynamic import DynamicSparsity
from .named import repruning, sr_ste, transposable, warm_up
from .phases import carry
from .rates import Replay, rates_of
from .teacher import distillation

__all__ = [
    "DynamicSparsity",
    "Replay",
    "carry",
    "distillation",
    "rates_of",
    "repruning",
    "sr_ste",
    "transposable",
    "warm_up",
]
