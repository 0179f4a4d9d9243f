"""Fonts for rendered text, split by family so that validation uses typefaces never trained on.

The families come from Debian packages (`fonts-dejavu-core`, `fonts-liberation2`, `fonts-noto-core`
and so on); whatever of them is installed is used.
"""

import re
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Literal

from PIL import ImageFont

Split = Literal["train", "validation"]
# Signs: faces of the validation families with hollow letters, or letters cut out of black boxes.
Faces = Literal["train", "validation", "signs"]

FONT_DIRECTORIES = tuple(
    Path(folder)
    for folder in ("/usr/share/fonts", "/usr/local/share/fonts", "/usr/share/texmf/fonts/opentype")
)

# Family groups: a font belongs to the longest group whose name starts its own family name, if only
# the name of a cut follows, so that close relatives ("Roboto Condensed", "OCRABold") never straddle
# the split and other typefaces ("Hack & Slash", "Intersect") are not taken for Hack and Inter.
TRAIN_FAMILIES = (
    "Andika", "Anonymous Pro", "Carlito", "Comfortaa", "Courier Prime", "DejaVu Sans Mono",
    "DejaVu Sans", "DejaVu Serif", "EB Garamond", "Fira Code", "Gentium", "Hack", "Inconsolata",
    "Lato", "Liberation Mono", "Liberation Sans", "Liberation Serif", "Linux Biolinum O",
    "Linux Libertine Mono O", "Linux Libertine O", "Noto Sans", "Noto Serif", "OCRA",
    "Old Standard TT", "Open Sans", "Quicksand", "Roboto", "TeX Gyre Adventor", "TeX Gyre Cursor",
    "TeX Gyre Heros", "TeX Gyre Pagella", "TeX Gyre Schola", "TeX Gyre Termes",
)  # fmt: skip
VALIDATION_FAMILIES = (
    "Cabin", "Caladea", "Inter", "JetBrains Mono", "OCR B", "TeX Gyre Bonum", "Vollkorn",
)  # fmt: skip
# Noto has one family per script; only these hold Latin letters of the common design.
_LATIN_NOTO = {"Noto Sans", "Noto Sans Display", "Noto Serif", "Noto Serif Display"}
_CUTS = re.compile(r"( ?(Alt|Bold|Cn|Code|Condensed|Display|Italic|Light|Medium|Minus|Sans))*")
_SIGNS = re.compile("Inverted|Outline")  # styles


@dataclass(frozen=True, slots=True, kw_only=True)
class Fonts:
    """Font files of one side of the split.

    Attributes:
        families: For each family group, its font files; a family is drawn first, then a file, so
            that families with many weights do not dominate.
    """

    families: dict[str, tuple[Path, ...]]


@cache
def find_fonts(faces: Faces) -> Fonts:
    """Find the installed fonts of one side of the split.

    Args:
        faces: Which families, and of them the signs or all others.

    Raises:
        FileNotFoundError: If none of the families is installed.
    """
    wanted = TRAIN_FAMILIES if faces == "train" else VALIDATION_FAMILIES
    found: dict[str, list[Path]] = {}
    for directory in FONT_DIRECTORIES:
        for path in sorted(directory.rglob("*.[to]tf")):
            family, style = ImageFont.truetype(str(path), size=16).getname()
            group, is_sign = _family_group(family or ""), bool(_SIGNS.search(style or ""))
            if group is not None and group in wanted and is_sign == (faces == "signs"):
                found.setdefault(group, []).append(path)
    if not found:
        raise FileNotFoundError(
            f"None of the {len(wanted)} font families for {faces} is installed under "
            f"{', '.join(map(str, FONT_DIRECTORIES))}; install for example the Debian packages "
            "fonts-dejavu-core and fonts-inter."
        )
    return Fonts(families={name: tuple(found[name]) for name in sorted(found)})


@lru_cache(maxsize=512)
def load_font(path: Path, size: int) -> ImageFont.FreeTypeFont:
    """Load a font file at a size in pixels; loaded fonts are kept.

    Args:
        path: TrueType or OpenType file.
        size: Height of the em square in pixels.
    """
    return ImageFont.truetype(str(path), size=size, layout_engine=ImageFont.Layout.BASIC)


def _family_group(family: str) -> str | None:
    if family.startswith("Noto") and family not in _LATIN_NOTO:
        return None
    groups = TRAIN_FAMILIES + VALIDATION_FAMILIES
    matches = [
        group
        for group in groups
        if family.startswith(group) and _CUTS.fullmatch(family.removeprefix(group))
    ]
    return max(matches, key=len, default=None)
