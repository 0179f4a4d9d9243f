"""The pages under docs: every reducer is explained, every picture and page that is named exists."""

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
