"""Distillation: the sparse network follows the dense one."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def distillation(student: Tensor, teacher: Tensor, temperature: float = 2.0) -> Tensor:
    """Kullback-Leibler divergence of softened outputs, times the squared temperature (Hinton et al. 2015).

    Add it to the loss of the task, ``loss + weight * distillation(model(x), dense(x))``, the dense network
    run without gradients.

    Args:
        student: logits [..., classes].
        teacher: logits of the dense network, the same shape; no gradient goes there.
        temperature: what logits are divided by.

    Returns:
        A scalar, the mean over all but the last dim.

    Raises:
        ValueError: shapes that differ, or a temperature that is not positive.
    """
    if student.shape != teacher.shape:
        raise ValueError(f"student and teacher must have one shape, not {student.shape} and {teacher.shape}")
    if temperature <= 0:
        raise ValueError(f"the temperature must be positive, not {temperature}")
    soft = F.log_softmax(student.float() / temperature, -1).flatten(0, -2)
    target = F.log_softmax(teacher.detach().float() / temperature, -1).flatten(0, -2)
    return F.kl_div(soft, target, reduction="batchmean", log_target=True) * temperature**2
