"""Encoders: pixels and waveforms in, hidden states out.

Each modality has two halves: preprocessing, which alone decides every length, and a tower,
which keeps to it. This package knows nothing of language models.
"""

from encoders.audio.energy import token_energy
from encoders.audio.features import (
    CLIP_SAMPLES,
    LogMel,
    cut_clips,
    num_audio_tokens,
    split_clips,
    subsampled_length,
)
from encoders.audio.parakeet import ParakeetTower, deterministic_config, init_small_audio_tower
from encoders.vision.attention import watch_class_attention
from encoders.vision.merging import TokenMerging, merge_counts
from encoders.vision.preprocessing import (
    choose_image_grid,
    choose_video_grid,
    num_image_tokens,
    num_video_tokens,
    patchify,
    resize_and_patchify,
    share_image_budget,
    unpatchify,
)
from encoders.vision.radio import RadioTower
from encoders.vision.tiling import (
    TiledImage,
    choose_tiling,
    num_tiles,
    num_tiling_tokens,
    tile_image,
)
from encoders.vision.timm_tower import TimmTower

__all__ = [
    "CLIP_SAMPLES",
    "LogMel",
    "ParakeetTower",
    "RadioTower",
    "TiledImage",
    "TimmTower",
    "TokenMerging",
    "choose_image_grid",
    "choose_tiling",
    "choose_video_grid",
    "cut_clips",
    "deterministic_config",
    "init_small_audio_tower",
    "merge_counts",
    "num_audio_tokens",
    "num_image_tokens",
    "num_tiles",
    "num_tiling_tokens",
    "num_video_tokens",
    "patchify",
    "resize_and_patchify",
    "share_image_budget",
    "split_clips",
    "subsampled_length",
    "tile_image",
    "token_energy",
    "unpatchify",
    "watch_class_attention",
]
