"""Signals that would end the process become an exception, so that files are cleaned up on the way out."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

#: All that can be caught and end a process by default; those of faults (SIGSEGV, ...) are no requests.
_NAMES = (
    "SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGVTALRM", "SIGPROF",
    "SIGXCPU", "SIGXFSZ", "SIGIO", "SIGPWR", "SIGSTKFLT",
)  # fmt: skip


class Stopped(BaseException):
    """A signal has asked the process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number  #: as a shell tells it


@contextmanager
def stoppable() -> Iterator[None]:
    """Inside, the first signal that would end the process raises :class:`Stopped`; others wait for its end.

    Signals that are ignored (``nohup``) or that somebody else handles are left as they are. Outside the main
    thread, where Python handles no signals, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
    known = {number: signal.getsignal(number) for number in numbers}
    ours = [n for n, handler in known.items() if handler in (signal.SIG_DFL, signal.default_int_handler)]

    def stop(number: int, frame: FrameType | None) -> None:
        for each in ours:
            signal.signal(each, signal.SIG_IGN)  # the way out is not interrupted
        raise Stopped(number)

    for number in ours:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, known[number])
