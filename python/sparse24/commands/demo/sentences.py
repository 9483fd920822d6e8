"""48 sentences in 24 pairs, the two of a pair saying the same in other words; and some to calibrate on."""

from __future__ import annotations

import ast
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path

PAIRS = (
    (
        "The train to the coast leaves at half past seven.",
        "At 7:30 a railway service departs for the seaside.",
    ),
    ("She forgot her umbrella and came home soaked.", "Without anything against the rain, she arrived wet."),
    (
        "Bread dough has to rest before it is baked.",
        "Let the loaf's mixture rise before putting it in the oven.",
    ),
    ("The museum is closed on Mondays.", "You cannot visit the gallery on the first day of the week."),
    ("Our server ran out of memory last night.", "The machine crashed overnight because its RAM was full."),
    ("He has been learning the violin for ten years.", "For a decade he has studied a string instrument."),
    ("The river floods the fields every spring.", "Each year, when snow melts, the meadows are under water."),
    (
        "Doctors advise drinking enough water in hot weather.",
        "Physicians recommend fluids during a heat wave.",
    ),
    ("The judge postponed the hearing by two weeks.", "The court date was moved a fortnight later."),
    (
        "Bees find their way home by the position of the sun.",
        "Sunlight tells honeybees the direction to the hive.",
    ),
    (
        "I would like to return these shoes, they are too small.",
        "This footwear does not fit; I want my money back.",
    ),
    ("Prices for electricity rose sharply this winter.", "Power bills went up a lot in the cold months."),
    ("The cat sleeps on the warm radiator all day.", "Our pet spends its time dozing on the heater."),
    (
        "Nobody in the village has seen a wolf for decades.",
        "It is many years since locals met that wild animal.",
    ),
    ("The recipe calls for two cups of sugar.", "You need half a litre of sweetener to make this dish."),
    ("A broken tooth should be treated within a day.", "See a dentist soon when a molar is damaged."),
    (
        "The bridge was built by the Romans.",
        "Engineers of the ancient empire constructed this river crossing.",
    ),
    ("Children under six travel free of charge.", "No ticket is needed for the very young passengers."),
    ("The new phone takes excellent pictures at night.", "Its camera works very well in the dark."),
    (
        "They painted the kitchen yellow over the weekend.",
        "On Saturday and Sunday the cooking room got new colour.",
    ),
    (
        "The astronauts returned to Earth after six months.",
        "After half a year in orbit, the crew landed again.",
    ),
    (
        "Stock markets fell after the bank's announcement.",
        "Shares lost value when the lender published its news.",
    ),
    ("The novel tells the story of three sisters.", "The book is about a family with three daughters."),
    (
        "Please turn off the lights when you leave the office.",
        "The last one at work should switch the lamps off.",
    ),
)

#: Characters of a sentence to calibrate on.
_SHORTEST, _LONGEST = 30, 200


def docstrings(count: int) -> list[str]:
    """English sentences that every machine has: first paragraphs of docstrings, Python's and ours."""
    folders = Path(sysconfig.get_path("stdlib")), Path(__file__).parent
    found = list(dict.fromkeys(text for folder in folders for text in _paragraphs(folder)))
    return random.Random(24).sample(found, min(count, len(found)))


def _paragraphs(folder: Path) -> Iterator[str]:
    for path in sorted(folder.glob("*.py")):
        tree = ast.parse(path.read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split())
                if _SHORTEST <= len(text) <= _LONGEST:
                    yield text
