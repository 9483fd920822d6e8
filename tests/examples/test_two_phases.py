"""The examples of two phases run, from the first line to the last, in a few steps."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "says"),
    [("two_phases", ["classifier: dense", "detector, AP: dense", "pruned last"]),
     ("two_phases_text", ["masked bytes, nats: dense", "packages of docstrings: dense"])],
)  # fmt: skip
def test_an_example_runs(name: str, says: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    module = example(name)
    module.STEPS, module.BATCH = 4, 8
    if name == "two_phases_text":
        module.PACKAGES = ("email", "xml")
    module.main()
    told = capsys.readouterr().out
    assert all(each in told for each in says)
