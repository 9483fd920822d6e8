"""apex's ``ASP``: the same names, so that scripts written for it run with another import.

    from sparse24.asp import ASP

    ASP.prune_trained_model(model, optimizer)
    ...                                       # the usual training loop

It differs from ``apex.contrib.sparsity`` in this:

* It runs on any device, with any number of models, and on subclasses of the listed layers. A call
  that could mean more than one model asks for ``model=``.
* Pruned weights are +0.0, never -0.0. No random state and no flag is changed.
* Output heads, adapters and weights tied to an embedding are left alone unless ``allowed_layer_names``
  lists them. The rule on sizes holds for every dtype.
* What would stay dense in ``to_sparse`` is pruned all the same, as by apex; the report says so.
* The model gets no buffers; its ``state_dict`` stays as it was. :meth:`ASP.state_dict` and
  :meth:`ASP.load_state_dict` write and read checkpoints with apex's mask keys.
* ``allow_permutation=True`` needs ``example_inputs``, with which the network's graph is captured and its
  outputs are compared, and is off by default.
"""

from .apex import ASP

__all__ = ["ASP"]
