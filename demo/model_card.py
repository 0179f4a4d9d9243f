"""What a checkpoint says of itself, from the model card that lies beside its weights."""

import re
from pathlib import Path

CARD = "README.md"
FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
SECTION = re.compile(r"^## (?P<title>[^\n]+)\n(?P<text>.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
PICTURE = re.compile(r"^!\[.*?\]\(.*?\)\n?", re.MULTILINE)  # beside the card, not on the page
WANTED = re.compile(r"can do|cannot|limit|mistake", re.IGNORECASE)


def limits(directory: Path) -> str:
    """The sections of a model card that say what the model can and cannot do.

    Args:
        directory: The checkpoint's folder.

    Returns:
        Markdown; a sentence where there is no card, or none of these sections in it.
    """
    card = directory / CARD
    if not card.is_file():
        return f"This checkpoint has no model card ({CARD}); nothing is known of its limits."
    text = PICTURE.sub("", FRONT_MATTER.sub("", card.read_text(encoding="utf-8")))
    sections = [
        f"### {match['title']}\n{match['text'].rstrip()}"
        for match in SECTION.finditer(text)
        if WANTED.search(match["title"])
    ]
    if not sections:
        return "The model card of this checkpoint does not say what its limits are."
    return "\n\n".join(sections)


def summary(directory: Path) -> str:
    """The model card's first paragraph on one line; nothing where there is no card."""
    card = directory / CARD
    if not card.is_file():
        return ""
    text = FRONT_MATTER.sub("", card.read_text(encoding="utf-8")).strip()
    paragraphs = [part for part in text.split("\n\n") if not part.startswith("#")]
    return " ".join(paragraphs[0].split()) if paragraphs else ""
