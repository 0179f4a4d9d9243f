"""LLaMA-Factory's ``dataset_info.json``: which file a set is in, and what its columns mean."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.data.formats import Layout
from finetune.data.messages import OPENAI, ROLES, SHAREGPT, Spelling
from omni.errors import RequestError

FILE_NAME = "dataset_info.json"
REMOTE = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")
KNOWN = ("file_name", "formatting", "columns", "tags", "ranking")
COLUMNS = {
    "alpaca": {"prompt": "instruction", "query": "input", "response": "output"},
    "sharegpt": {"messages": "conversations"},
    "openai": {"messages": "messages"},
}
OTHER_COLUMNS = ("history", "system", "tools", "images", "videos", "audios", "documents")
ROLE_TAGS = {
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": "call",
    "system_tag": "system",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SetInfo:
    """One entry: where its rows are and how to read them."""

    path: Path
    layout: Layout


def load_sets(path: Path) -> dict[str, SetInfo]:
    """Read the entries of a ``dataset_info.json``.

    Raises:
        RequestError: It is no such file, or an entry cannot be used.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise RequestError(f"{path}: found no readable JSON ({error})") from error
    if not isinstance(entries, Mapping) or not entries:
        raise RequestError(f"{path}: expected an object with one entry a data set")
    return {name: _read_entry(name, entry, path) for name, entry in entries.items()}


def _read_entry(name: str, entry: object, path: Path) -> SetInfo:
    where = f"{path}: {name}"
    if not isinstance(entry, Mapping):
        raise RequestError(f"{where}: found {entry!r:.60}, expected an object with 'file_name'")
    for key in entry:
        if key in REMOTE:
            raise RequestError(
                f"{where}: found {key!r}; download the set and name its file with 'file_name'"
            )
        if key not in KNOWN:
            raise RequestError(
                f"{where}: found the key {key!r}, expected {', '.join(KNOWN)}; remove it if this "
                "set means the same without"
            )
    if entry.get("ranking"):
        raise RequestError(f"{where}: found a set of preference pairs; only answers are learned")
    formatting = entry.get("formatting", "alpaca")
    if formatting not in COLUMNS or not isinstance(entry.get("file_name"), str):
        raise RequestError(
            f"{where}: found formatting {formatting!r} and file_name {entry.get('file_name')!r}; "
            f"expected one of {', '.join(COLUMNS)} and a file"
        )
    layout = Layout(
        alpaca=formatting == "alpaca",
        columns=_columns(entry.get("columns") or {}, formatting, where),
        spelling=_spelling(entry.get("tags") or {}, formatting, where),
    )
    return SetInfo(path=path.parent / entry["file_name"], layout=layout)


def _columns(columns: Any, formatting: str, where: str) -> dict[str, str]:
    allowed = [*COLUMNS[formatting], *OTHER_COLUMNS]
    for what in columns:
        if what not in allowed:
            raise RequestError(
                f"{where}: found the column {what!r}, expected one of {', '.join(allowed)}"
            )
    return {**COLUMNS[formatting], **columns}


def _spelling(tags: Any, formatting: str, where: str) -> Spelling:
    """The defaults are ShareGPT's words; tags that are given replace them one by one."""
    base = OPENAI if formatting == "openai" else SHAREGPT
    roles = dict(ROLES)
    for tag, value in tags.items():
        if tag in ROLE_TAGS:
            roles[value] = ROLE_TAGS[tag]
        elif tag not in ("role_tag", "content_tag"):
            allowed = ", ".join(("role_tag", "content_tag", *ROLE_TAGS))
            raise RequestError(f"{where}: found the tag {tag!r}, expected one of {allowed}")
    return Spelling(
        role=tags.get("role_tag", base.role),
        content=tags.get("content_tag", base.content),
        roles=roles,
    )
