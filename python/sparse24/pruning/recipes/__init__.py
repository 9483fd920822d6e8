"""Recipes over a :class:`~sparse24.Sparsifier`: what happens to its masks in which step of a training.

The talk's recipe needs none of this: train dense, ``prune()``, ``attach(optimizer)``, train again. Others:

* :func:`sr_ste`, :func:`transposable`, :func:`repruning`, :func:`warm_up`: masks that change while it trains
  (:class:`DynamicSparsity`);
* :func:`carry`: masks go on to the network of the next phase, with new heads and changed layers;
* :func:`rates_of` and :class:`Replay`: the first training's learning rates again, in fewer steps;
* :func:`sparse_products`: layers compute by what the mask keeps, where a step is faster so;
* :func:`distillation`: a loss that also follows the dense network.
"""

from .by_products import dense_products, sparse_products
from .dynamic import DynamicSparsity
from .named import repruning, sr_ste, transposable, warm_up
from .phases import carry
from .rates import Replay, rates_of
from .teacher import distillation

__all__ = [
    "DynamicSparsity",
    "Replay",
    "carry",
    "dense_products",
    "distillation",
    "rates_of",
    "repruning",
    "sparse_products",
    "sr_ste",
    "transposable",
    "warm_up",
]
