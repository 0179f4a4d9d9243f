"""Every row that the documentation shows is read."""

import json
import re
from pathlib import Path

import pytest

from finetune.data.formats import read_row
from finetune.data.media import MediaFolder
from finetune.data.sample import Origin

PAGE = Path(__file__).parents[3] / "docs" / "training-data.md"
ROWS = re.findall(r"```json\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.mark.parametrize("text", ROWS)
def test_a_documented_row_is_a_sample(text):
    sample = read_row(json.loads(text), Origin(file="page", row=1), MediaFolder(root=Path(".")))
    assert any(sample.learned)


def test_the_page_shows_every_format():
    shown = [set(json.loads(text)) for text in ROWS]
    assert {"messages", "conversations", "prompt", "media_options"} <= set().union(*shown)
