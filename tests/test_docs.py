"""The pages under docs: every reducer is explained, every picture and page that is named exists."""

import json
import re
from pathlib import Path

import pytest

from token_reduction import REDUCERS

DOCS = Path(__file__).parents[1] / "docs"
STRUCTURAL = {"identity", "pixel_shuffle", "tubelet"}  # belong to the weights


def test_every_reducer_has_a_row_and_a_paragraph() -> None:
    text = (DOCS / "token-reduction.md").read_text()
    for name in set(REDUCERS) - STRUCTURAL:
        assert re.search(rf"^\|.*`{name}\(", text, re.MULTILINE), name
        assert re.search(rf"^\*\*.*`{name}\(", text, re.MULTILINE), name


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
    for link in links:
        if "://" not in link:
            assert (page.parent / link).exists(), link


def test_the_table_of_omni_bench_reduce_is_that_of_its_results() -> None:
    text = (DOCS / "token-reduction.md").read_text()
    [source] = re.findall(r"benchmarks/results/[\w-]+reduce-omni-tiny\.jsonl", text)
    rows = map(json.loads, (DOCS.parent / source).read_text().splitlines())
    measured = [row for row in rows if row["baseline_of"] is None]
    table = text[text.index("| task | reducer | tokens |") :].split("\n\n")[0].splitlines()[2:]
    found = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in table]
    expected = [
        [
            "none" if row["spec"] == "identity" else row["spec"],
            f"{row['tokens']:.0f}",
            f"{100 * row['quality']['mean']:.1f}",
        ]
        for row in measured
    ]
    assert sorted(cells[1:4] for cells in found) == sorted(expected)
