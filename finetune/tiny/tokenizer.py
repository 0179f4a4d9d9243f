"""The tokenizer of `omni-tiny`: whole words for its own questions and answers, bytes for the rest.

A byte-level vocabulary without a single merge. A word of the committed questions and answers
(`questions.py`) is in the vocabulary as a whole and so is one token; any other text, such as a
printed code to be read, falls apart into its bytes. Nothing is ever unknown, and decoding gives
back the text exactly. Digits stand alone, so that numbers are read digit by digit.

    python -m finetune.tiny.tokenizer runs/omni-tiny/tokenizer
"""

import argparse
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from finetune.tiny import questions
from finetune.tiny.audio_data import WORDS
from finetune.tiny.drawing import COLOURS, DIRECTIONS, SHAPES

logger = logging.getLogger(__name__)

# Ids of the released checkpoints; the ids between them are reserved.
SPECIAL_TOKENS = {
    0: "<unk>",
    1: "<s>",
    2: "</s>",
    10: "<|im_start|>",
    11: "<|im_end|>",
    12: "<think>",
    13: "</think>",
    14: "<tool_call>",
    15: "</tool_call>",
    16: "<tool_response>",
    17: "</tool_response>",
    18: "<image>",
    21: "<img>",
    22: "</img>",
    27: "<so_embedding>",
    28: "<so_start>",
    29: "<so_end>",
}
THINK_END = next(i for i, token in SPECIAL_TOKENS.items() if token == "</think>")
NUM_SPECIAL_TOKENS = 30
MAX_VOCAB_SIZE = 1536

_DRAWS_PER_TASK = 1000
# A word with the space before it, one digit, one other sign, or a run of spaces.
_PIECES = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]|\s+(?=\s\S)|\s+"
_PROMPT_TEXT = (
    *("user", "assistant", "system", "page"),
    "Frame 1 sampled at 0.00 seconds and frame 2 sampled at 0.50 seconds: ",
    "Page 1 of 2: page",
    "This is a video:",
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer, the same on every call.

    Returns:
        A tokenizer with `<|im_end|>` as end, `<unk>` as padding, and no token added at the
        beginning.
    """
    vocabulary = {SPECIAL_TOKENS.get(i, f"<SPECIAL_{i}>"): i for i in range(NUM_SPECIAL_TOKENS)}
    for piece in (*sorted(pre_tokenizers.ByteLevel.alphabet()), *_word_pieces()):
        if len(vocabulary) < MAX_VOCAB_SIZE:
            vocabulary.setdefault(piece, len(vocabulary))
    # `ignore_merges` takes a piece whole if it is in the vocabulary; else bytes are left.
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = _split_pieces()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, i in vocabulary.items()
            if i < NUM_SPECIAL_TOKENS
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="<|im_end|>",
        unk_token="<unk>",
        pad_token="<unk>",
        clean_up_tokenization_spaces=False,
        model_max_length=32_768,
    )


def encode_characters(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Encode a text byte by byte, also where it holds words of the vocabulary.

    A line to be read is best taught this way: the model spells what it sees, and does not
    have to know whether it is a word. Decoding gives the same text.

    Args:
        tokenizer: From `build_tokenizer`.
        text: Any text; special tokens in it are spelled too.
    """
    spelled = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pieces = spelled.pre_tokenize_str(text)
    return [tokenizer.convert_tokens_to_ids(sign) for piece, _ in pieces for sign in piece]


def _split_pieces() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _word_pieces() -> list[str]:
    """Return all pieces of questions and answers that are longer than one byte, most used first."""
    splitter = _split_pieces()
    counts: Counter[str] = Counter()
    for text, weight in _corpus():
        for piece, _ in splitter.pre_tokenize_str(text):
            counts[piece] += weight
    by_use = sorted(counts, key=lambda piece: (-counts[piece], piece))
    return [piece for piece in by_use if len(piece) > 1]


def _corpus() -> Iterator[tuple[str, int]]:
    """Yield texts with weights: what must be whole first, then questions as often as drawn."""
    labels = (*WORDS, *questions.OBJECTS, *COLOURS, *SHAPES, *" ".join(DIRECTIONS).split())
    for label in labels:  # in all four forms, so that each is one token wherever it stands
        yield f"{label} {label}", _DRAWS_PER_TASK
        yield f"{label.capitalize()} {label.capitalize()}", _DRAWS_PER_TASK
    for text in _PROMPT_TEXT:
        yield text, _DRAWS_PER_TASK
    for text in questions.all_wordings():
        yield text, 1
    rng = np.random.default_rng(0)
    for ask in questions.ASKERS.values():
        for _ in range(_DRAWS_PER_TASK):
            yield ask(rng), 1


def main() -> None:
    """Build the tokenizer and save it into a folder."""
    parser = argparse.ArgumentParser(description="Build the tokenizer of omni-tiny.")
    parser.add_argument("out", type=Path, help="folder to save it in")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(options.out)
    logger.info("%d tokens saved in %s", len(tokenizer), options.out)


if __name__ == "__main__":
    main()
