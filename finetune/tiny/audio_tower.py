"""The audio tower of `omni-tiny` and the heads that teach it.

The tower is a Parakeet encoder at a small width: 80 log-mel bins every 10 ms in, one token
of 144 values every 80 ms out. Three heads read the tokens, and are thrown away afterwards:
the mean of the tokens names the word, and each token on its own spells letters and words
(CTC), so that a language model which reads token by token finds both.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import ParakeetEncoder, ParakeetEncoderConfig

from finetune.tiny.audio_data import LABELS, SILENCE, WORDS

BLANK = 0
LETTERS = "abcdefghijklmnopqrstuvwxyz "


def build_tower_config() -> ParakeetEncoderConfig:
    """Return the configuration of the audio tower of `omni-tiny`."""
    return ParakeetEncoderConfig(
        hidden_size=144,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=576,
        num_mel_bins=80,
        subsampling_factor=8,
        subsampling_conv_channels=64,
        conv_kernel_size=9,
        convolution_bias=False,
        attention_bias=False,
        scale_input=False,
        dropout=0.0,
        dropout_positions=0.0,
        activation_dropout=0.0,
        attention_dropout=0.0,
        layerdrop=0.0,
    )


def build_tower(seed: int = 0) -> ParakeetEncoder:
    """Build an untrained tower that can learn.

    The subsampling convolutions have no norm between them. With the default initialisation
    (normal, 0.02) the signal fades through them and a small tower never starts to learn, so
    every convolution and linear layer is scaled by its fan-in instead.

    Args:
        seed: Seed of the weights.
    """
    torch.manual_seed(seed)
    tower = ParakeetEncoder(build_tower_config())
    for module in tower.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    return tower


class HeadLogits(NamedTuple):
    """What the heads say about a batch.

    Attributes:
        label: Scores over `LABELS`, one row a clip.
        letters: Scores over blank and `LETTERS`, one row a token.
        words: Scores over blank and `WORDS`, one row a token.
    """

    label: Float[Tensor, "batch labels"]
    letters: Float[Tensor, "batch tokens letters"]
    words: Float[Tensor, "batch tokens words"]


class AudioHeads(nn.Module):
    """Three linear heads on the tokens of the tower.

    Args:
        hidden_size: Width of a token.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.label = nn.Linear(hidden_size, len(LABELS))
        self.letters = nn.Linear(hidden_size, 1 + len(LETTERS))
        self.words = nn.Linear(hidden_size, 1 + len(WORDS))

    def forward(
        self, tokens: Float[Tensor, "batch tokens hidden"], mask: Bool[Tensor, "batch tokens"]
    ) -> HeadLogits:
        """Score labels, letters and words.

        Args:
            tokens: What the tower returns.
            mask: True where a token is real.
        """
        weights = mask.to(tokens.dtype).unsqueeze(-1)
        pooled = (tokens * weights).sum(1) / weights.sum(1).clamp_min(1)
        return HeadLogits(self.label(pooled), self.letters(tokens), self.words(tokens))


def spell(words: Sequence[str]) -> list[int]:
    """Turn words into CTC targets over blank and `LETTERS`; silence has none."""
    text = " ".join(word for word in words if word != SILENCE)
    return [1 + LETTERS.index(letter) for letter in text]


def word_ids(words: Sequence[str]) -> list[int]:
    """Turn words into CTC targets over blank and `WORDS`; silence has none."""
    return [1 + WORDS.index(word) for word in words if word != SILENCE]


def collapse(scores: Float[Tensor, "tokens symbols"]) -> list[int]:
    """Read a CTC output greedily: the best symbol of each token, repeats and blanks dropped."""
    best = torch.unique_consecutive(scores.argmax(-1))
    return [int(symbol) for symbol in best if symbol != BLANK]
