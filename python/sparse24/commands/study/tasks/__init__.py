"""What the study trains on: data, a network, a loss a step, a score on data of their own."""

from .task import Phase, Task, windows

__all__ = ["Phase", "Task", "windows"]
