"""Pages in a real browser: an empty console, nothing asked for, and no sideways scrolling on a phone."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparse24.commands.page import Page

from . import browser
from .test_page import EVIL, SQUARE, full_page
from .test_plots import PLOTS

pytestmark = pytest.mark.skipif(
    browser.found() is None, reason="no Chromium is installed (Debian's package is chromium)"
)


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """Every kind of part, and every kind of plot."""
    made = full_page()
    made.table([[f"a long header {i}" for i in range(30)], ["1"] * 30], "wide")
    for name, plot in PLOTS.items():
        made.figure(plot(EVIL), name)
    made.write(tmp_path / "index.html")
    return tmp_path / "index.html"


@pytest.mark.parametrize(("width", "theme"), [(1100, "light"), (360, "dark")])
def test_the_page_is_quiet_and_fits(page: Path, width: int, theme: str) -> None:
    seen = browser.look(page, width, theme)
    assert seen.said == []
    assert seen.asked == []
    assert seen.width <= width
    assert seen.text.count(EVIL) >= 9
    assert seen.picture.startswith(b"\x89PNG")


def test_the_test_can_fail(tmp_path: Path) -> None:
    """What the page forbids itself is told in the console when somebody tries."""
    made = Page("t")
    made.figure(SQUARE.format(""), "x")
    file = tmp_path / "index.html"
    file.write_text(
        made.html().replace("</body>", "<script>1</script><img src='http://127.0.0.1:9/x'></body>")
    )
    seen = browser.look(file)
    assert len(seen.said) >= 2
    assert any("Content Security Policy" in each for each in seen.said)
    file.write_text("<script>console.error('loud'); throw Error('unseen')</script>")
    assert [each.split(":")[0] for each in browser.look(file).said] == ["error", "exception"]
