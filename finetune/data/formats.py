"""One row in any of the formats that people have -> a `Sample`.

    messages        HF, OpenAI, Axolotl, ms-swift, TRL: turns, media in parts or in lists
    conversations   LLaVA, ShareGPT: "from" and "value"
    prompt + completion   TRL: only the completion is learned
    instruction + output  Alpaca, the default of LLaMA-Factory

`Layout` names columns and roles where a `dataset_info.json` does.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from finetune.data import options, shown
from finetune.data.media import LIST_KEYS, MediaFolder, place_media
from finetune.data.messages import Spelling, Turn, read_tools, read_turns
from finetune.data.sample import Origin, RowError, Sample

REFUSED = {
    "objects": "grounding boxes; write the boxes into the text",
    "rejected_response": "a preference pair; keep the answer to learn and remove the other",
    "rejected": "a preference pair; keep the answer to learn and remove the other",
    "rejected_messages": "a preference pair; keep the answer to learn and remove the other",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Names of columns, as a `dataset_info.json` gives them.

    Attributes:
        alpaca: Whether a row is one instruction and its output, instead of a list of turns.
        columns: What a column is -> its name in the rows.
        spelling: How turns are written.
    """

    alpaca: bool = False
    columns: Mapping[str, str] = field(default_factory=dict)
    spelling: Spelling | None = None

    def rename(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The row under standard names; a listed column that it lacks is empty."""
        renamed = {what: row[name] for what, name in self.columns.items() if name in row}
        return renamed | {key: row[key] for key in (options.KEY, shown.KEY, *REFUSED) if key in row}


def read_row(
    row: object, origin: Origin, folder: MediaFolder, layout: Layout | None = None
) -> Sample:
    """Read one row.

    Args:
        row: As parsed from its file.
        origin: Where it stands.
        folder: Where its media are.
        layout: Names of its columns; None finds the format by the standard names.

    Raises:
        RowError: The row is not understood; says what was found and expected.
    """
    if not isinstance(row, Mapping):
        raise RowError(f"found {row!r:.60}, expected an object with 'messages'")
    row = {key: value for key, value in row.items() if value is not None}
    if layout is not None:
        row = layout.rename(row)
    for key, what in REFUSED.items():
        if row.get(key):
            raise RowError(f"found {key!r}: {what}")
    turns, learned = _conversation(row, layout)
    if system := row.get("system"):
        if not isinstance(system, str):
            raise RowError(f"found {system!r:.60} as system, expected text")
        if turns[0]["role"] == "system" and turns[0]["content"] != system:
            raise RowError("found a column 'system' beside another system message; leave one out")
        if turns[0]["role"] != "system":
            turns = [{"role": "system", "content": system}, *turns]
    if not any(learned):
        raise RowError("found no assistant message to learn; a row needs at least one")
    tools = read_tools(row.get("tools"))
    placed, media = place_media(turns, row, folder)
    return Sample(
        messages=tuple(placed),
        media=tuple(media),
        learned=tuple(learned),
        tools=tools,
        options=options.read_options(row),
        shown=shown.read_shown(row),
        origin=origin,
    )


def _conversation(row: Mapping[str, Any], layout: Layout | None) -> tuple[list[Turn], list[bool]]:
    spelling = layout.spelling if layout else None
    if layout is not None and layout.alpaca:
        return _alpaca(row)
    for key in ("messages", "conversations", "conversation"):
        if key in row:
            return read_turns(row[key], spelling)
    if "prompt" in row and "completion" in row:
        prompt = _as_turns(row["prompt"], "user")
        completion = _as_turns(row["completion"], "assistant")
        turns, learned = read_turns([*prompt, *completion])
        _, before = read_turns(prompt)
        return turns, [*(False for _ in before), *learned[len(before) :]]
    if "instruction" in row and "output" in row:
        return _alpaca(
            {
                **row,
                "prompt": row["instruction"],
                "query": row.get("input"),
                "response": row["output"],
            }
        )
    found = ", ".join(map(repr, row)) or "nothing"
    media = ", ".join(sorted(set(LIST_KEYS.values())))
    raise RowError(
        f"found the columns {found}; expected 'messages', 'conversations', 'prompt' with "
        f"'completion', or 'instruction' with 'output' (and media: {media})"
    )


def _alpaca(row: Mapping[str, Any]) -> tuple[list[Turn], list[bool]]:
    """One instruction with earlier turns; the input follows the instruction on a new line."""
    turns: list[object] = []
    history = row.get("history") or []
    for number, pair in enumerate(history, start=1):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise RowError(f"history {number}: found {pair!r:.60}, expected [question, answer]")
        turns += [
            {"role": "user", "content": pair[0]},
            {"role": "assistant", "content": pair[1]},
        ]
    question = "\n".join(str(row[key]) for key in ("prompt", "query") if row.get(key))
    if not question:
        raise RowError("found an empty instruction, expected a question")
    turns += [
        {"role": "user", "content": question},
        {"role": "assistant", "content": row.get("response")},
    ]
    return read_turns(turns)


def _as_turns(value: object, role: str) -> list[Any]:
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if isinstance(value, list | tuple):
        return list(value)
    raise RowError(f"found {value!r:.60} as the {role}'s side, expected text or messages")
