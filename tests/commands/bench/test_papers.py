"""Tables in papers: replaced between their markers, by class of machine, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sparse24.commands import bench
from sparse24.commands.bench import devices, papers, table
from sparse24.commands.bench.machine import MachineClass

ZEN = MachineClass("AMD Zen 3, AVX2, 2 cores")
ARM = MachineClass("Arm Neoverse V1, NEON, 8 cores")
TABLE = table.Table("linear-2", "Linear.", [["a", "b"], ["1", "2"]])
TEXT = "Linear.\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n\nBy `x`."
RESULTS = """# Results

<!-- class:amd-zen-3-avx2-2-cores -->
## AMD Zen 3, AVX2, 2 cores

prose \\1 of Zen

<!-- table:linear-2@amd-zen-3-avx2-2-cores -->
old
<!-- /table:linear-2@amd-zen-3-avx2-2-cores -->

<!-- table:linear-1@amd-zen-3-avx2-2-cores -->
one thread
<!-- /table:linear-1@amd-zen-3-avx2-2-cores -->

<!-- /class:amd-zen-3-avx2-2-cores -->

The end.
"""


def test_a_table_is_replaced_and_nothing_else() -> None:
    assert papers.placed(RESULTS, "linear-2", ZEN, TEXT) == RESULTS.replace("\nold\n", f"\n{TEXT}\n")


def test_a_table_that_its_class_has_not_is_added_to_the_section() -> None:
    marked = f"<!-- table:conv-2@{ZEN.key} -->\n{TEXT}\n<!-- /table:conv-2@{ZEN.key} -->"
    end = f"<!-- /class:{ZEN.key} -->"
    assert papers.placed(RESULTS, "conv-2", ZEN, TEXT) == RESULTS.replace(end, f"{marked}\n\n{end}")


def test_another_class_gets_a_section_of_its_own_and_changes_no_other() -> None:
    once = papers.placed(RESULTS, "linear-2", ARM, TEXT)
    assert once.startswith(RESULTS.rstrip())
    added = once.removeprefix(RESULTS.rstrip())
    assert added == (
        f"\n\n<!-- class:{ARM.key} -->\n## {ARM.title}\n\n"
        f"<!-- table:linear-2@{ARM.key} -->\n{TEXT}\n<!-- /table:linear-2@{ARM.key} -->\n\n"
        f"<!-- /class:{ARM.key} -->\n"
    )
    assert papers.placed(once, "linear-2", ARM, "new") == once.replace(TEXT, "new")


def test_a_paper_without_the_table_has_nothing_to_replace() -> None:
    assert papers.replaced(RESULTS, "linear-2", ARM, TEXT) is None


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with two papers, and this process in a folder of it."""
    (tmp_path / "bench").mkdir()
    (tmp_path / "csrc" / "cpu").mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "sparse24"\n')
    (tmp_path / "bench" / "RESULTS.md").write_text(RESULTS)
    (tmp_path / "README.md").write_text(
        f"# x\n<!-- table:linear-2@{ZEN.key} -->\nold\n<!-- /table:linear-2@{ZEN.key} -->\n"
    )
    monkeypatch.chdir(tmp_path / "csrc" / "cpu")
    return tmp_path


def test_the_checkout_is_found_from_a_folder_inside(planted: Path) -> None:
    assert papers.checkout() == planted


def test_a_folder_of_another_project_is_no_checkout(planted: Path) -> None:
    (planted / "pyproject.toml").write_text('[project]\nname = "other"\n')
    with pytest.raises(papers.FileError, match="is not inside a checkout of sparse24"):
        papers.checkout()


def test_both_papers_are_written_and_other_classes_kept(planted: Path) -> None:
    papers.write(planted, TABLE, ZEN, "By `x`.")
    readme = (planted / "README.md").read_text()
    assert TEXT in readme
    assert "old" not in readme
    papers.write(planted, TABLE, ARM, "By `y`.")
    assert (planted / "README.md").read_text() == readme
    results = (planted / "bench" / "RESULTS.md").read_text()
    assert "By `x`." in results
    assert "By `y`." in results
    assert "one thread" in results


def test_a_run_that_writes_names_its_command(planted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = table.Table("linear", "Linear.", [["a"], ["1"]])
    monkeypatch.setattr(bench, "_benchmark", lambda name, device: lambda setting: [made])
    monkeypatch.setattr(devices.MachineClass, "here", lambda: ZEN)
    assert bench.run(["linear"], threads=2, write=True, progress=lambda line: None) == 0
    results = (planted / "bench" / "RESULTS.md").read_text()
    assert "\nBy `sparse24 bench --only linear --threads 2` on " in results
    assert "old" not in results
    assert "one thread" in results


def test_the_papers_of_this_checkout_have_sections_of_this_form() -> None:
    """So that the next ``--write`` finds them."""
    root = Path(__file__).parents[3]
    results, readme = (root / "bench" / "RESULTS.md").read_text(), (root / "README.md").read_text()
    assert f"<!-- class:{ZEN.key} -->\n## {ZEN.title}\n" in results
    for name in ("linear-2", "conv-2"):
        assert papers.replaced(results, name, ZEN, "new") is not None
    shown = re.findall(r"\]\(docs/images/(\w+)\.svg\)", readme)
    assert {"speed", "size"} <= set(shown)
    assert all((root / "docs" / "images" / f"{name}.svg").exists() for name in shown)
