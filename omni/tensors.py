"""Media items from the loose tensors that transformers' processor makes for this model family.

Those tensors say less than ``OmniInputs``: videos of one size only, no reduction, and pictures and
videos share a placeholder id, so both in one prompt cannot be told apart. What they can say runs
through the same encoding and fusion as everything else.
"""

import warnings
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from omni.config import OmniConfig
from omni.errors import AlignmentError, RequestError
from omni.inputs import MediaItem, Modality, Window


def media_from_tensors(
    config: OmniConfig,
    input_ids: Tensor,
    *,
    pixel_values: Tensor | None = None,
    image_grid_hw: Tensor | None = None,
    pixel_values_videos: Tensor | None = None,
    input_features: Tensor | None = None,
    input_features_mask: Tensor | None = None,
) -> list[MediaItem]:
    """Give every medium in the tensors its placeholders, in prompt order.

    Args:
        config: The model's config: placeholder ids, patch size, temporal patch size.
        input_ids: ``(batch, seq)`` with all placeholders.
        pixel_values: ``(patches, 3 * patch**2)`` of all images, concatenated.
        image_grid_hw: ``(images, 2)`` patch grid of each image.
        pixel_values_videos: ``(videos, tubelets, frames a tubelet * 3, height, width)``, or
            ``(frames, 3, height, width)`` of one video, as until transformers 5.23.
        input_features: ``(clips, frames, bins)`` log-mel features.
        input_features_mask: ``(clips, frames)``, True at valid frames.

    Returns:
        Items for ``OmniModel.forward(media=...)``.

    Raises:
        RequestError: Images and a video together, an image tensor without its grids, or videos of
            another shape.
        AlignmentError: The placeholders do not match the tensors.
    """
    if pixel_values is not None and pixel_values_videos is not None:
        raise RequestError(
            "pixel_values and pixel_values_videos came together, but both use placeholder id "
            f"{config.image_token_id} and tensors cannot say which is which. Build the prompt with "
            "omni's processor (OmniInputs), which mixes images and videos freely."
        )
    items: list[MediaItem] = []
    if pixel_values is not None:
        if image_grid_hw is None:
            raise RequestError("pixel_values needs image_grid_hw of shape (images, 2); found None.")
        items += _images(config, pixel_values, image_grid_hw)
    if pixel_values_videos is not None:
        if (spec := config.reduction.get("video", "identity")) != "identity":
            warnings.warn(
                f"The config's video reduction {spec!r} is not applied to pixel_values_videos, "
                "whose prompt holds all placeholders. Build OmniInputs to reduce.",
                stacklevel=2,
            )
        videos = _frames(config, pixel_values_videos)
        items += [_video(config, frames, f"video {i}") for i, frames in enumerate(videos)]
    visual = _place(items, input_ids, config.image_token_id)
    clips: list[MediaItem] = []
    if input_features is not None:
        if config.audio_normalize != "per_feature":
            warnings.warn(
                f"This checkpoint was trained on log-mel features normalised over "
                f"{config.audio_normalize!r} (audio_normalize), and transformers' extractor "
                "normalises per feature. Build OmniInputs with omni's processor.",
                stacklevel=2,
            )
        clips = _clips(config, input_features, input_features_mask)
    return visual + _place(clips, input_ids, config.audio_token_id)


def _images(config: OmniConfig, pixel_values: Tensor, grids: Tensor) -> list[MediaItem]:
    sizes = [(int(h), int(w)) for h, w in grids.tolist()]
    total = sum(h * w for h, w in sizes)
    if total != len(pixel_values):
        raise AlignmentError(
            f"image_grid_hw describes {total} patches but pixel_values holds {len(pixel_values)}."
        )
    parts = pixel_values.split([h * w for h, w in sizes])
    return [
        _item(config, "image", [Window(rows, h * w, h * w)], (1, h, w), f"image {i}")
        for i, (rows, (h, w)) in enumerate(zip(parts, sizes, strict=True))
    ]


def _frames(config: OmniConfig, videos: Tensor) -> list[Tensor]:
    """The frames of each video, ``(frames, channels, height, width)``, tubelets taken apart."""
    channels, together = config.vision_config.num_channels, config.tubelet_frames
    if videos.ndim == 4 and videos.shape[1] == channels:
        return [videos]
    if videos.ndim == 5 and videos.shape[2] == together * channels:
        return list(videos.unflatten(2, (together, channels)).flatten(1, 2))
    raise RequestError(
        f"pixel_values_videos has the shape {tuple(videos.shape)}; expected (videos, tubelets, "
        f"{together * channels}, height, width), or (frames, {channels}, height, width) of one "
        "video."
    )


def _video(config: OmniConfig, frames: Tensor, name: str) -> MediaItem:
    """Frames to patch rows (channel, y, x); tubelets are made by the model's own reducer."""
    patch = config.vision_config.patch_size
    count, channels, height, width = frames.shape
    h, w = height // patch, width // patch
    rows = F.unfold(frames, patch, stride=patch).mT.reshape(count * h * w, channels * patch * patch)
    return _item(config, "video", [Window(rows, len(rows), len(rows))], (count, h, w), name)


def _clips(config: OmniConfig, features: Tensor, mask: Tensor | None) -> list[MediaItem]:
    """One item a clip. Counts follow transformers: one frame is added back to a masked clip."""
    frames = features.shape[1]
    if mask is None:
        valid = counted = [frames] * len(features)
    else:
        valid = [int(n) for n in mask.sum(-1).tolist()]
        counted = [n + 1 for n in valid]
    items = []
    for index, (clip, real, length) in enumerate(zip(features, valid, counted, strict=True)):
        tokens = -(-length // config.audio_config.subsampling_factor)
        window = Window(clip, real, tokens)
        items.append(_item(config, "audio", [window], (tokens, 1, 1), f"recording {index}"))
    return items


def _item(
    config: OmniConfig,
    modality: Modality,
    windows: list[Window],
    grid: tuple[int, int, int],
    name: str,
) -> MediaItem:
    t, h, w = grid
    merge = config.merge_size if modality != "audio" else 1
    if modality == "video":
        t = -(-t // config.tubelet_frames)
    return MediaItem(
        modality=modality,
        windows=windows,
        grid=grid,
        token_id=config.audio_token_id if modality == "audio" else config.image_token_id,
        num_tokens=t * (h // merge) * (w // merge) if modality != "audio" else t,
        separators=((),) * (t - 1) if modality == "video" else (),
        name=name,
    )


def _place(items: Sequence[MediaItem], input_ids: Tensor, token_id: int) -> list[MediaItem]:
    """Hand the placeholders of one id to the items in reading order."""
    rows, columns = torch.nonzero(input_ids == token_id, as_tuple=True)
    needed = sum(item.num_tokens for item in items)
    if not items:
        return []
    if needed != len(rows):
        raise AlignmentError(
            f"Found {len(rows)} placeholder token(s) of id {token_id} in input_ids, but the "
            f"tensors give {needed} feature vector(s) for {len(items)} item(s). Expand each "
            "marker to exactly the tokens of its medium."
        )
    placed, start = [], 0
    for item in items:
        stop = start + item.num_tokens
        placed.append(_placed(item, input_ids, rows[start:stop], columns[start:stop]))
        start = stop
    return placed


def _placed(item: MediaItem, input_ids: Tensor, rows: Tensor, columns: Tensor) -> MediaItem:
    """Locate one item's block; for a video, what stands between its tubelets is kept as is."""
    row, first, last = int(rows[0]), int(columns[0]), int(columns[-1])
    steps = len(item.separators) + 1
    per_step = item.num_tokens // steps
    ends = columns.tolist()[per_step - 1 :: per_step]
    starts = columns.tolist()[::per_step]
    separators = tuple(
        tuple(input_ids[row, end + 1 : begin].tolist())
        for end, begin in zip(ends, starts[1:], strict=False)
    )
    length = item.num_tokens + sum(map(len, separators))
    if int(rows[-1]) != row or last - first + 1 != length:
        raise AlignmentError(
            f"{item.name}: its {item.num_tokens} placeholder(s) are scattered from row {row}, "
            f"column {first} to row {int(rows[-1])}, column {last}. One medium's placeholders must "
            "stand in one row, in runs of one image or one tubelet."
        )
    return replace(item, row=row, start=first, separators=separators if steps > 1 else ())
