"""Training data: formats, labels, batches.

open_dataset -> Dataset of Sample | BadRow -> encode_sample -> OmniInputs -> batches
"""

from finetune.data.check import DataReport, check_dataset
from finetune.data.dataset import Dataset, open_dataset
from finetune.data.encode import decode_media, encode_prompt, encode_sample, with_max_length
from finetune.data.grouping import Collator, group_lengths, num_targets
from finetune.data.sample import BadRow, MediaRef, Origin, RowError, Sample

__all__ = [
    "BadRow",
    "Collator",
    "DataReport",
    "Dataset",
    "MediaRef",
    "Origin",
    "RowError",
    "Sample",
    "check_dataset",
    "decode_media",
    "encode_prompt",
    "encode_sample",
    "group_lengths",
    "num_targets",
    "open_dataset",
    "with_max_length",
]
