"""Training data: formats, labels, batches.

open_dataset -> Dataset of Sample | BadRow -> encode_sample -> OmniInputs -> batches
"""

from finetune.data.check import DataReport, check_dataset
from finetune.data.dataset import Dataset, open_dataset
from finetune.data.encode import decode_media, encode_prompt, encode_sample, with_max_length
from finetune.data.grouping import Collator, count_loss_tokens, group_lengths
from finetune.data.sample import BadRow, MediaRef, Origin, RowError, Sample
from finetune.data.stream import BadRows, Batch, BatchConfig, BatchStream, Position

__all__ = [
    "BadRow",
    "BadRows",
    "Batch",
    "BatchConfig",
    "BatchStream",
    "Collator",
    "DataReport",
    "Dataset",
    "MediaRef",
    "Origin",
    "Position",
    "RowError",
    "Sample",
    "check_dataset",
    "count_loss_tokens",
    "decode_media",
    "encode_prompt",
    "encode_sample",
    "group_lengths",
    "open_dataset",
    "with_max_length",
]
