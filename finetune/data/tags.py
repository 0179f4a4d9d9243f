"""Tags: how a turn's text says where a medium stands.

A tag stays where it was written, down to the spaces around it; only what it stands for is put in
its place when the prompt is built.
"""

import re

from omni.prompt import MediaKind

TAG = re.compile(r"<(image|video|audio|pdf|so_embedding)>")
TAG_OF: dict[MediaKind, str] = {
    "image": "<image>",
    "video": "<video>",
    "audio": "<audio>",
    "document": "<pdf>",
}
_KIND_OF: dict[str, MediaKind] = {
    "image": "image",
    "video": "video",
    "audio": "audio",
    "so_embedding": "audio",  # how the released template spells it
    "pdf": "document",
}


def tag_kind(match: re.Match[str]) -> MediaKind:
    """The kind of medium that a matched tag stands for."""
    return _KIND_OF[match[1]]
