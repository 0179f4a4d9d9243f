"""Training data: formats, labels, batches.

open_dataset -> Dataset of Sample | BadRow -> encode_sample -> OmniInputs -> batches
"""

from finetune.data.dataset import Dataset, open_dataset
from finetune.data.encode import decode_media, encode_prompt, encode_sample, with_max_length
from finetune.data.sample import BadRow, MediaRef, Origin, RowError, Sample

__all__ = [
    "BadRow",
    "Dataset",
    "MediaRef",
    "Origin",
    "RowError",
    "Sample",
    "decode_media",
    "encode_prompt",
    "encode_sample",
    "open_dataset",
    "with_max_length",
]
