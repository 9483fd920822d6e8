"""The rules of the house that a compiler does not check: each holds here, and each finds what is planted.

The rules are in structure/, as functions of the root of a tree.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from .structure import cpp_rules, file_rules, paper_rules, python_rules
from .structure.planted import INIT, PLANTED, SOUND, Planted, Rule

ROOT = Path(__file__).parent.parent
RULES: tuple[Rule, ...] = (*cpp_rules.RULES, *python_rules.RULES, *file_rules.RULES, *paper_rules.RULES)


def name_of(rule: Rule) -> str:
    return rule.__name__


@pytest.mark.parametrize("rule", RULES, ids=name_of)
def test_the_rule_holds(rule: Rule) -> None:
    assert rule(ROOT) == []


def test_what_is_excused_still_needs_it() -> None:
    steps = {
        (file.as_posix(), other)
        for (file, _), rooms in python_rules.known_rooms(ROOT).items()
        for other in rooms
    }
    assert steps >= python_rules.KNOWN_DETOURS


def test_the_rules_look_at_the_tree_that_is_there() -> None:
    """A rule that finds no files would find no violations either."""
    assert all(len(cpp_rules.sources(ROOT, folder)) > 5 for folder in cpp_rules.BACKENDS)
    assert any(path.name.endswith("-inl.h") for path in cpp_rules.sources(ROOT, "cpu"))
    assert len(cpp_rules.flagged_commands(ROOT)) >= 3
    assert len(python_rules.modules(ROOT)) > 50
    rooms = {own for _, own in python_rules.known_rooms(ROOT)}
    assert {"ops", "nn", "pruning", "choose", "files", "commands", "__init__", "__main__"} <= rooms
    assert {path.parts[0] for path in file_rules.files(ROOT)} == set(file_rules.FOLDERS)


# ---- violations, planted ----------------------------------------------------------------------------


def plant(root: Path, tree: dict[str, str]) -> Path:
    for name, text in tree.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: f"{name_of(planted.rule)}-{planted.found}")
def test_a_planted_violation_is_found(planted: Planted, tmp_path: Path) -> None:
    root = plant(tmp_path, {INIT: ""} | planted.tree)
    assert any(planted.found in each for each in planted.rule(root))


def test_every_rule_has_a_planted_violation() -> None:
    assert {planted.rule for planted in PLANTED} == set(RULES)


@pytest.mark.parametrize("rule", RULES, ids=name_of)
def test_a_sound_tree_has_no_violation(rule: Rule, tmp_path: Path) -> None:
    assert rule(plant(tmp_path, SOUND)) == []
