"""Trials of cuSPARSELt's algorithms in a process of their own.

An algorithm may leave an illegal instruction behind, after which nothing runs on the GPU in that process
(float16 on an H100, id 36, was seen to), or hang. So each is tried by a child process, which notes in a
journal what it is about to try. What was in flight when the child died, or did not answer in time, is denied
for good (``denied``), and another child goes on with the rest. The process that asks keeps its context.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import subprocess
import sys
import time
from types import TracebackType
from typing import Any, NamedTuple

import torch

from ..registry import Error
from . import denied, route, tuned
from .cusparselt import GPU, Algorithm

#: A child that has not answered for so long hangs: a trial takes milliseconds, an import and a context
#: seconds.
SECONDS_TO_BEGIN, SECONDS_TO_TRY = 180.0, 30.0


class Trial(NamedTuple):
    """What trying one algorithm showed."""

    algorithm: Algorithm
    microseconds: float  #: median of its launches, the L2 cache flushed before each; 0: not timed
    error: float  #: largest difference from the default algorithm over its largest magnitude
    refused: str  #: why it is out; empty: it is right


class ChildError(Exception):
    """The child is gone: what it was doing crashed, killed the context, or hung."""


class Trials:
    """A child process that tries algorithms for one device; begun at the first question, and again after a
    death.

    Args:
        device: where the products run; on a CPU, whose tensors the emulator takes for a GPU's, the emulator's
        device 0.
    """

    _numbers = itertools.count()

    def __init__(self, device: torch.device, gpu: GPU) -> None:
        self._index, self._gpu = device.index or 0, gpu
        self._device = str(device)
        self._child: subprocess.Popen[bytes] | None = None
        self._journal = denied.journal(next(Trials._numbers))
        self._call: route.Call | None = None
        self._unread = b""

    def __enter__(self) -> Trials:
        denied.recover()
        denied.load(self._index, self._gpu)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
        with contextlib.suppress(OSError):
            self._journal.unlink()

    # ---- questions ----------------------------------------------------------------------------------

    def algorithms(self, call: route.Call) -> list[Algorithm]:
        """What the library has for a call, the default first, without those that are denied.

        Raises:
            Error: the call cannot be set up, or its setting up kills the child.
        """
        self._call = None
        try:
            answer = self._open(call)
        except ChildError as death:
            raise Error(
                f"setting up {call.m} x {call.k}, {call.n} tokens, ended the process: {death}"
            ) from death
        found = [Algorithm(*numbers) for numbers in answer["algorithms"]]
        return [algorithm for algorithm in found if not route.why_denied(call, self._gpu, algorithm)]

    def choice_of_library(self, launches: int) -> Algorithm | None:
        """What ``cusparseLtMatmulSearch`` chooses, which tries it all; ``None``: it is denied, or failed."""
        call = self._opened_call()
        if route.is_search_denied(call, self._gpu):
            return None
        try:
            answer = self._ask({"do": "library", "launches": launches}, [denied.LIBRARY_SEARCH, 0, 0, -1])
        except ChildError:
            return None
        return Algorithm(*answer["algorithm"]) if "algorithm" in answer else None

    def try_out(self, algorithm: Algorithm, launches: int) -> Trial:
        """One algorithm of the call that :meth:`algorithms` was asked for last."""
        call = self._opened_call()
        reason = route.why_denied(call, self._gpu, algorithm)
        if reason:
            return Trial(algorithm, 0.0, 0.0, reason)
        question = {"do": "try", "algorithm": tuned.numbers_of(algorithm), "launches": launches}
        try:
            answer = self._ask(question, tuned.numbers_of(algorithm))
        except ChildError as death:
            return Trial(algorithm, 0.0, 0.0, f"denied from now on: {death}")
        return Trial(algorithm, answer["microseconds"], answer["error"], answer["refused"])

    def figures(self, algorithm: Algorithm, launches: int) -> tuple[float, float, float]:
        """Microseconds of the call sparse, dense, and dense with the weight expanded for the call, in turns.

        Whole calls from Python, as users make them: their host cost is part of them, the L2 cache is flushed.

        Raises:
            Error: one of them fails.
        """
        question = {"do": "figures", "algorithm": tuned.numbers_of(algorithm), "launches": launches}
        try:
            answer = self._ask(question, tuned.numbers_of(algorithm))
        except ChildError as death:
            raise Error(f"timing algorithm {algorithm.id} ended the process: {death}") from death
        if "failed" in answer:
            raise Error(answer["failed"])
        return answer["sparse"], answer["dense"], answer["expanded"]

    # ---- the child ----------------------------------------------------------------------------------

    def _opened_call(self) -> route.Call:
        assert self._call is not None, "ask for its algorithms first"
        return self._call

    def _open(self, call: route.Call) -> dict[str, Any]:
        self._begin()
        form = [str(call.dtype)[6:], str(call.out_dtype)[6:], call.m, call.n, call.k]
        question = {"do": "open", "call": form, "window": call.window}
        answer = self._exchange(question, SECONDS_TO_BEGIN)
        if "failed" in answer:
            raise Error(answer["failed"])
        self._call = call
        return answer

    def _ask(self, question: dict[str, Any], in_flight: list[int]) -> dict[str, Any]:
        """An answer of a child that has the call open; what kills the child is denied."""
        call = self._opened_call()
        if self._child is None:
            self._open(call)
        try:
            return self._exchange({**question, "in_flight": in_flight}, SECONDS_TO_TRY)
        except ChildError as death:
            self._end()
            with contextlib.suppress(OSError):  # denied in this process all the same
                denied.add(self._index, self._gpu, denied.dtypes_of(call), in_flight, str(death))
            raise

    def _begin(self) -> None:
        if self._child is not None:
            return
        self._journal.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", f"{__package__}.trying", self._device, str(self._journal)]
        command += [tuned.identity(self._index, self._gpu)]
        self._unread = b""
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def _exchange(self, question: dict[str, Any], seconds: float) -> dict[str, Any]:
        child = self._child
        assert child is not None
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(json.dumps(question).encode() + b"\n")
            child.stdin.flush()
        except BrokenPipeError:
            raise self._death(child) from None
        deadline = time.monotonic() + seconds
        while b"\n" not in self._unread:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([child.stdout], [], [], left)[0]:
                self._end()
                raise ChildError(f"no answer for {seconds:.0f} s")
            more = os.read(child.stdout.fileno(), 1 << 16)
            if not more:
                raise self._death(child)
            self._unread += more
        line, _, self._unread = self._unread.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        if "dead" in answer:
            self._end()
            raise ChildError(answer["dead"])
        return answer

    def _death(self, child: subprocess.Popen[bytes]) -> ChildError:
        code = child.wait()
        self._end()
        return ChildError(f"killed by signal {-code}" if code < 0 else f"the process ended with {code}")

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()  # it may hang
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
