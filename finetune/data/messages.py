"""Chat turns in the spellings of the ecosystem -> turns as the chat template knows them.

A role or a key that the template does not know would vanish without a word, so it is refused here;
numbers and texts such as ``id`` may stand beside what is said, as notes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.data.sample import RowError

Turn = dict[str, Any]

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "function_call": "call",
    "tool_call": "call",
}
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
LOSS_KEYS = ("loss", "weight", "loss_scale")  # ms-swift, OpenAI, ms-swift
# What a turn says under these keys is no note on it, whatever its type.
CONTENT_KEYS = ("image", "video", "audio", "media", "file", "text", "function_call", "refusal")
TURN_TOKENS = ("<|im_start|>", "<|im_end|>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spelling:
    """Keys and roles of one way to write turns.

    Attributes:
        role: Key of the role.
        content: Key of what is said.
        roles: Role in the data -> role of the template, or ``call`` for a function call.
    """

    role: str = "role"
    content: str = "content"
    roles: Mapping[str, str]


OPENAI = Spelling(roles=ROLES)
SHAREGPT = Spelling(role="from", content="value", roles=ROLES)


def read_turns(
    turns: object, spelling: Spelling | None = None, *, learn: bool = True
) -> tuple[list[Turn], list[bool]]:
    """Read a list of turns.

    Args:
        turns: What the row has.
        spelling: How they are written; None decides turn by turn (``from`` or ``role``).
        learn: Whether the assistant's words count where a turn does not say.

    Returns:
        The turns, and for each assistant turn whether it is learned.

    Raises:
        RowError: A turn that is not understood.
    """
    if not isinstance(turns, Sequence) or isinstance(turns, str | bytes) or not turns:
        raise RowError(f"found {_shown(turns)} as conversation, expected a list of messages")
    found: list[Turn] = []
    learned: list[bool] = []
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, Mapping):
            raise RowError(f"message {number}: found {_shown(turn)}, expected an object")
        used = spelling or (SHAREGPT if "from" in turn else OPENAI)
        role = used.roles.get(str(turn.get(used.role)))
        if role is None:
            known = ", ".join(used.roles)
            raise RowError(
                f"message {number}: found {used.role} {_shown(turn.get(used.role))}, expected one "
                f"of {known}"
            )
        _check_keys(turn, used, number)
        loss = _loss(turn, number)
        if role == "call":
            calls = _calls_in_text(turn.get(used.content), number)
            if found and found[-1]["role"] == "assistant":  # one turn says it and calls
                if loss is not None and loss != learned[-1]:
                    raise RowError(
                        f"message {number}: found another loss than on the words before it, which "
                        "are the same turn; it counts or not"
                    )
                found[-1].setdefault("tool_calls", []).extend(calls)
                continue
            message: Turn = {"role": "assistant", "content": "", "tool_calls": calls}
        else:
            message = {"role": role, "content": _content(turn.get(used.content), number)}
            if role == "assistant":
                _add_assistant_parts(message, turn, number)
        if message["role"] == "assistant":
            learned.append(learn if loss is None else loss)
        elif loss:
            raise RowError(
                f"message {number}: found a loss on the {role}'s words; only the assistant's are "
                "learned"
            )
        found.append(message)
    check_turns(found)
    return found, learned


def check_turns(turns: Sequence[Turn]) -> None:
    """Refuse what the chat template would drop or misread.

    Raises:
        RowError: A system message that is not the first, an assistant turn that says nothing, a
            token in the text that ends a turn.
    """
    for number, turn in enumerate(turns, start=1):
        if turn["role"] == "system" and number > 1:
            raise RowError(f"message {number}: found a system message, expected it only as the 1st")
        if turn["role"] == "assistant" and not (turn["content"] or turn.get("tool_calls")):
            raise RowError(f"message {number}: the assistant says nothing; remove or fill it")
        for text in _texts(turn):
            for token in TURN_TOKENS:
                if token in text:
                    raise RowError(
                        f"message {number}: found {token!r} in the text, which would end or start "
                        "a turn; remove it, the chat template adds its own"
                    )


def read_tools(tools: object) -> tuple[Mapping[str, Any], ...]:
    """Read function declarations: a list of objects, or JSON of one.

    Raises:
        RowError: Anything else.
    """
    tools = _from_json(tools, "tools") if isinstance(tools, str) and tools.strip() else tools
    if not tools:
        return ()
    if not isinstance(tools, Sequence) or not all(isinstance(tool, Mapping) for tool in tools):
        raise RowError(f"found {_shown(tools)} as tools, expected a list of function declarations")
    return tuple(tools)


def _check_keys(turn: Mapping[str, Any], used: Spelling, number: int) -> None:
    """Refuse keys that say what nobody would read; plain values are notes on the turn."""
    read = {used.role, used.content, *REASONING_KEYS, *LOSS_KEYS, "tool_calls"}
    for key, value in turn.items():
        says = value not in (None, "", [], {}) and (
            key in CONTENT_KEYS or isinstance(value, Mapping | list | tuple)
        )
        if says and key not in read:
            raise RowError(
                f"message {number}: found {key}={_shown(value)}, which nobody would read; media "
                f"are columns of the row or parts of {used.content!r}, calls are 'tool_calls'"
            )


def _content(content: object, number: int) -> str | list[dict[str, Any]]:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise RowError(
            f"message {number}: found {_shown(content)} as content, expected text or a list of "
            "parts"
        )
    parts = []
    for part in content:
        if not isinstance(part, Mapping):
            raise RowError(f"message {number}: found the part {_shown(part)}, expected an object")
        # Arrow gives every part the keys of all others, empty.
        parts.append({key: value for key, value in part.items() if value is not None})
    return parts


def _add_assistant_parts(message: Turn, turn: Mapping[str, Any], number: int) -> None:
    reasoning = [turn[key] for key in REASONING_KEYS if turn.get(key)]
    if reasoning:
        if not isinstance(reasoning[0], str):
            raise RowError(f"message {number}: found {_shown(reasoning[0])} as reasoning, not text")
        message["reasoning_content"] = reasoning[0]
    if turn.get("tool_calls"):
        message["tool_calls"] = _calls(turn["tool_calls"], number)


def _calls_in_text(content: object, number: int) -> list[dict[str, Any]]:
    """ShareGPT and ms-swift write a call as JSON text: one object, or a list of them."""
    value = _from_json(content, f"message {number}") if isinstance(content, str) else content
    return _calls(value if isinstance(value, list) else [value], number)


def _calls(calls: object, number: int) -> list[dict[str, Any]]:
    """Calls with a name and arguments as an object, which is what the template spells out."""
    if not isinstance(calls, Sequence) or isinstance(calls, str | bytes):
        raise RowError(f"message {number}: found {_shown(calls)} as tool_calls, expected a list")
    found = []
    for call in calls:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise RowError(
                f"message {number}: found {_shown(call)} as a tool call, expected an object with "
                "'name' and 'arguments'"
            )
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            arguments = _from_json(arguments or "{}", f"message {number}: arguments")
        if arguments is not None and not isinstance(arguments, Mapping):
            raise RowError(
                f"message {number}: found {_shown(arguments)} as arguments of {function['name']}, "
                "expected an object"
            )
        named = {"name": function["name"], "arguments": dict(arguments or {})}
        found.append({"type": "function", "function": named})
    return found


def _loss(turn: Mapping[str, Any], number: int) -> bool | None:
    """Whether a turn says that it is learned; None where it does not say."""
    given = {key: turn[key] for key in LOSS_KEYS if turn.get(key) is not None}
    for key, value in given.items():
        if value not in (0, 1):
            raise RowError(
                f"message {number}: found {key}={_shown(value)}, expected 0 or 1: a turn counts in "
                "the loss or not"
            )
    if len(set(given.values())) > 1:
        raise RowError(f"message {number}: {' and '.join(given)} contradict each other")
    return bool(next(iter(given.values()))) if given else None


def _texts(turn: Turn) -> list[str]:
    content = turn["content"]
    parts = [content] if isinstance(content, str) else [part.get("text", "") for part in content]
    calls = [json.dumps(call, ensure_ascii=False) for call in turn.get("tool_calls", [])]
    return [str(text) for text in (*parts, turn.get("reasoning_content", ""), *calls)]


def _from_json(text: object, what: str) -> Any:
    try:
        return json.loads(str(text))
    except (ValueError, RecursionError) as error:
        raise RowError(f"{what}: found {_shown(text)}, expected JSON ({error})") from error


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
