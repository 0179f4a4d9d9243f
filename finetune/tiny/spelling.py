"""Answers that are spelled, and where media and questions show what an answer says."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from transformers import PreTrainedTokenizerBase

from finetune.guide import Span, is_whole, mark, mark_prompt
from finetune.tiny.audio_data import WORDS
from finetune.tiny.drawing import COLOURS, SHAPES
from finetune.tiny.tokenizer import THINK_END, encode_characters
from finetune.tiny.turns import Shown, Turn
from omni.inputs import IGNORE_INDEX, OmniInputs


def spell_answers(
    inputs: OmniInputs, turns: Sequence[Turn], tokenizer: PreTrainedTokenizerBase
) -> OmniInputs:
    """Label the spelled answers of a sample byte by byte, also where they hold words.

    Args:
        inputs: One row, whose media come before the first answer.
        turns: What its labelled stretches answer, in order.
        tokenizer: From `finetune.tiny.tokenizer`.
    """
    if not any(turn.spelled for turn in turns):
        return inputs
    assert inputs.labels is not None
    answers, rows = _answers(inputs), []
    for row in (inputs.input_ids[0], inputs.labels[0]):
        pieces, done = [], 0
        for turn, answer in zip(turns, answers, strict=True):
            if turn.spelled:
                spelled = torch.tensor(encode_characters(tokenizer, turn.answer))
                pieces += [row[done : answer.start], spelled]
                done = answer.stop
        rows.append(torch.cat([*pieces, row[done:]])[None])
    return replace(
        inputs,
        input_ids=rows[0],
        labels=rows[1],
        attention_mask=torch.ones_like(rows[0], dtype=torch.bool),
    )


def mark_answers(
    inputs: OmniInputs,
    turns: Sequence[Turn],
    items: Sequence[Sequence[int]],
    tokenizer: PreTrainedTokenizerBase,
) -> OmniInputs:
    """Note where the media show what the answers say, and the question what a conclusion looks up.

    Nothing is noted of a spelled answer with a character of several tokens, nor where a medium
    does not have all of its tokens.

    Args:
        inputs: One row, spelled.
        turns: What its labelled stretches answer, in order.
        items: Of each medium that a turn may name, its items in the row: the sound of a clip
            comes behind its frames.
        tokenizer: From `finetune.tiny.tokenizer`.
    """
    marks: list[tuple[int, int, Span]] = []
    for turn, answer in zip(turns, _answers(inputs), strict=True):
        shown = turn.shown if turn.spelled else _shown_by_token(turn, tokenizer)
        if len(shown) != len(answer):
            continue
        for position, part in zip(answer, shown, strict=True):
            if part is None:
                continue
            item = items[part.medium][int(part.is_track)]
            if is_whole(inputs.media[item]):
                marks.append((position, item, part.span))
    return mark_prompt(mark(inputs, marks), _repeated(inputs, turns, tokenizer))


# What a conclusion looks up, by task: it repeats the words of the question that are among these.
KEYS = {"which": WORDS, "shape_colour": WORDS, "word": (*COLOURS, *SHAPES)}


def _repeated(
    inputs: OmniInputs, turns: Sequence[Turn], tokenizer: PreTrainedTokenizerBase
) -> list[tuple[int, list[int]]]:
    """Positions of keys in answers, and of the same words or letters in their questions."""
    found: list[tuple[int, list[int]]] = []
    said = [tokenizer.decode([i]).lower() for i in inputs.input_ids[0].tolist()]
    done = 0
    for turn, answer in zip(turns, _answers(inputs), strict=True):
        question = range(done, answer.start)
        if turn.spelled:
            found += _repeated_letters(turn, answer, question, said)
        elif turn.task in KEYS:
            found += _repeated_words(KEYS[turn.task], answer, question, said)
        done = answer.stop
    return found


def _repeated_words(
    keys: Sequence[str], answer: range, question: range, said: Sequence[str]
) -> Iterator[tuple[int, list[int]]]:
    """Words of a conclusion that the question has as well, if they are among the keys."""
    words = [text.strip() for text in said]
    colons = [position for position in answer if words[position] == ":"]
    for position in range(colons[-1] + 1, answer.stop) if colons else ():
        places = [p for p in question if words[p] == words[position]]
        if words[position] in keys and places:
            yield position, places


def _repeated_letters(
    turn: Turn, answer: range, question: range, said: Sequence[str]
) -> Iterator[tuple[int, list[int]]]:
    """Letters of the keys of a spelled answer, each where the question last spells that key."""
    text = "".join(said[p] for p in question)
    tokens = [p for p in question for _ in said[p]]  # of each letter
    first = answer.start
    keys, _, _ = turn.answer.rpartition(": ") if turn.task in ("field", "cell") else ("", "", "")
    for key in keys.split(", "):
        as_word = rf"(?<!\w){re.escape(key.lower())}(?!\w)"
        for match in list(re.finditer(as_word, text))[-1:]:
            for n in range(len(key)):
                yield first + n, [tokens[match.start() + n]]
        first += len(key) + len(", ")


def _shown_by_token(turn: Turn, tokenizer: PreTrainedTokenizerBase) -> Sequence[Shown | None]:
    """What shows each token of an answer in words; a word has the space before it."""
    if not turn.shown:
        return ()
    ends = tokenizer(turn.answer, return_offsets_mapping=True)["offset_mapping"]
    return [turn.shown[end - 1] for _, end in ends]


def _answers(inputs: OmniInputs) -> list[range]:
    """Positions of each answer, without reasoning before it and the token that ends it."""
    assert inputs.labels is not None
    labelled = torch.nonzero(inputs.labels[0] != IGNORE_INDEX).flatten().tolist()
    answers: list[range] = []
    for position in labelled:
        if answers and position == answers[-1].stop:
            answers[-1] = range(answers[-1].start, position + 1)
        else:
            answers.append(range(position, position + 1))
    ids = inputs.input_ids[0].tolist()
    return [_behind_reasoning(ids, answer[:-1]) for answer in answers]


def _behind_reasoning(ids: Sequence[int], said: range) -> range:
    """Positions of what is said after reasoning and a line break, if there is any."""
    ends = [position for position in said if ids[position] == THINK_END]
    return range(ends[0] + 2, said.stop) if ends else said
