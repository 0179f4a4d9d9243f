"""Plan each medium of a request: grid, frames, clips, and from these its token count.

Nothing is decoded here that the gateway has not decoded already: windows are made lazily when the
model encodes them, and the counts hold whatever the pixels and samples turn out to be.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from encoders import (
    LogMel,
    choose_image_grid,
    choose_tiling,
    choose_video_grid,
    resize_and_patchify,
    share_image_budget,
    split_clips,
    subsampled_length,
    tile_image,
    token_energy,
)
from encoders.audio.features import HOP_LENGTH, SAMPLING_RATE
from omni.config import OmniConfig
from omni.errors import ContextLengthError, RequestError
from omni.frames import choose_frames
from omni.inputs import LazyWindows, MediaItem, Modality, Window
from omni.media import Audio, FramePlan, Image, Video
from omni.prompt import MarkedMedium, Page, Track
from omni.reduction import check_reduction
from omni.settings import ProcessorSettings
from token_reduction import TokenShape

MakeWindows = Callable[[], Iterator[Window]]

TOKEN_SECONDS = 0.08  # one audio token: 8 mel frames of 10 ms


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaOptions:
    """What one request wants done with its media; None means the checkpoint's default.

    Attributes:
        fps: Frames sampled per second of video.
        num_frames: Most frames of one video.
        dpi: Dots per inch at which pages are rendered.
        audio_in_video: Listen to a video's sound track too.
        reduction: Spec string per modality, such as ``{"video": "evs(0.7)"}``.
    """

    fps: float | None = None
    num_frames: int | None = None
    dpi: int | None = None
    audio_in_video: bool = False
    reduction: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for modality in self.reduction:
            if modality not in ("image", "video", "audio"):
                raise RequestError(
                    f"Reduction was given for {modality!r}; expected image, video or audio."
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedMedium:
    """One marker's worth: its items, the text before it, and the labels between its steps."""

    items: list[MediaItem]
    lead_in: str = ""
    step_labels: tuple[str, ...] = ()


def plan_media(
    media: Sequence[MarkedMedium],
    config: OmniConfig,
    settings: ProcessorSettings,
    options: MediaOptions,
    *,
    max_tokens: int,
) -> list[PlannedMedium]:
    """Plan every medium of a request.

    Args:
        media: In prompt order.
        config: The model's config.
        settings: Defaults of the checkpoint.
        options: Wishes of the request.
        max_tokens: What the text leaves of the context; images share it.

    Returns:
        One plan a medium, in the same order.

    Raises:
        ContextLengthError: The images do not fit even at their smallest size.
        RequestError: A reducer spec is wrong for its modality.
    """
    planner = _Planner(config, settings, options)
    pictures = [medium for medium in media if isinstance(medium, Image | Page)]
    budgets = iter(planner.image_budgets(pictures, max_tokens))
    planned = []
    for medium in media:
        if isinstance(medium, Image | Page):
            planned.append(planner.image(medium, next(budgets)))
        elif isinstance(medium, Video):
            planned.append(planner.video(medium))
        elif isinstance(medium, Track):
            planned.append(planner.audio(medium.audio, medium.name))
        else:
            planned.append(planner.audio(medium, medium.name))
    return planned


class _Planner:
    """The settings that all media of a request share."""

    def __init__(
        self, config: OmniConfig, settings: ProcessorSettings, options: MediaOptions
    ) -> None:
        self.config = config
        self.settings = settings
        self.options = options
        self.patch = config.vision_config.patch_size
        self.dpi = options.dpi or settings.document_dpi
        self.tile_size = config.force_image_size or 512  # pixels, for models that tile

    def reduction(self, modality: Modality) -> str:
        return self.options.reduction.get(modality) or self.config.reduction.get(
            modality, "identity"
        )

    def count(self, modality: Modality, grid: tuple[int, int, int], reduction: str) -> int:
        """Tokens left of a grid of decoder tokens."""
        reducer = check_reduction(reduction, modality, self.config)
        try:
            shape = reducer.part("tower").plan(TokenShape.full(modality, grid))
            return reducer.part("after_projector").num_tokens(shape)
        except ValueError as error:
            raise RequestError(f"Reduction {reduction!r} for {modality}: {error}") from error

    def patchify(self, frames: Tensor, grid: tuple[int, int]) -> Tensor:
        return resize_and_patchify(
            frames,
            grid,
            patch_size=self.patch,
            mean=self.config.norm_mean,
            std=self.config.norm_std,
        )

    # ------------------------------------------------------------ pictures and pages

    def image_budgets(self, pictures: Sequence[Image | Page], max_tokens: int) -> list[int]:
        """Most patches of each picture, so that all together fit the context."""
        if not self.config.dynamic_resolution or not pictures:
            return [0] * len(pictures)
        delimiters = 2 * len(pictures)
        try:
            return share_image_budget(
                [self.size(picture) for picture in pictures],
                max(max_tokens - delimiters, 1) * self.config.merge_size**2,
                patch_size=self.patch,
                min_patches=self.config.min_num_patches,
                max_patches=self.config.max_num_patches,
                downsample=self.config.merge_size,
            )
        except ValueError as error:
            raise ContextLengthError(
                f"The images do not fit a context of {self.settings.max_model_len} tokens: {error}"
            ) from error

    def size(self, picture: Image | Page) -> tuple[int, int]:
        """Height and width in pixels; a page is measured without rendering it."""
        if isinstance(picture, Image):
            return picture.height, picture.width
        width, height = picture.document.page_size_points(picture.index)
        return max(round(height * self.dpi / 72), 1), max(round(width * self.dpi / 72), 1)

    def pixels(self, picture: Image | Page) -> Tensor:
        if isinstance(picture, Image):
            return picture.pixels
        return picture.document.render(picture.index, dpi=self.dpi).pixels

    def image(self, picture: Image | Page, max_patches: int) -> PlannedMedium:
        height, width = self.size(picture)
        facts = {"width": width, "height": height}
        if isinstance(picture, Page):
            facts |= {"page": picture.index + 1, "dpi": self.dpi}
        if not self.config.dynamic_resolution:
            return PlannedMedium(items=self.tiles(picture, facts))
        grid = choose_image_grid(
            height,
            width,
            patch_size=self.patch,
            min_patches=self.config.min_num_patches,
            max_patches=max_patches,
            downsample=self.config.merge_size,
        )

        def windows() -> Iterator[Window]:
            rows = self.patchify(self.pixels(picture)[None], grid)
            yield Window(rows, len(rows), len(rows))

        return PlannedMedium(items=[self.picture_item(windows, grid, picture.name, facts)])

    def tiles(self, picture: Image | Page, facts: Mapping[str, Any]) -> list[MediaItem]:
        """V2-VL: square tiles and a thumbnail, each an item, all in one pair of delimiters."""
        pixels = self.pixels(picture)
        tiled = tile_image(
            pixels,
            max_tiles=self.config.max_num_tiles,
            thumbnail=self.config.use_thumbnail,
            tile_size=self.tile_size,
            patch_size=self.patch,
            mean=tuple(self.config.norm_mean),
            std=tuple(self.config.norm_std),
        )
        sizes = [(int(h), int(w)) for h, w in tiled.grids.tolist()]
        patches = tiled.patches.split([h * w for h, w in sizes])
        sheet = choose_tiling(
            *pixels.shape[:2], max_tiles=self.config.max_num_tiles, tile_size=self.tile_size
        )
        regions = _tile_regions(sheet, facts["width"], facts["height"])
        return [
            self.picture_item(
                partial(iter, [Window(rows, len(rows), len(rows))]),
                grid,
                f"{picture.name} tile {i + 1} of {len(sizes)}",
                {**facts, "region": regions[i]},
            )
            for i, (rows, grid) in enumerate(zip(patches, sizes, strict=True))
        ]

    def picture_item(
        self, windows: MakeWindows, grid: tuple[int, int], name: str, facts: Mapping[str, Any]
    ) -> MediaItem:
        merge, reduction = self.config.merge_size, self.reduction("image")
        tokens = self.count("image", (1, grid[0] // merge, grid[1] // merge), reduction)
        return _item("image", windows, (1, *grid), None, reduction, tokens, name, facts)

    # ------------------------------------------------------------ video

    def video(self, video: Video) -> PlannedMedium:
        reduction = self.reduction("video")
        frame_reducer = check_reduction(reduction, "video", self.config).part("frames")
        sampled = video.plan(
            fps=self.options.fps or self.settings.fps,
            num_frames=self.options.num_frames or self.settings.num_frames,
        )
        plan = choose_frames(video, sampled, frame_reducer)
        grid = self.video_grid(video)
        pair, merge = self.config.tubelet_frames, self.config.merge_size
        steps = -(-plan.num_frames // pair)
        tokens = self.count("video", (steps, grid[0] // merge, grid[1] // merge), reduction)
        group = max(self.settings.frames_per_window // pair, 1) * pair

        def windows() -> Iterator[Window]:
            frames: list[Tensor] = []
            for frame in video.frames(plan):
                frames.append(self.patchify(frame[None], grid))
                if len(frames) == group:
                    rows = torch.cat(frames)
                    frames = []
                    yield Window(rows, len(rows), len(rows))
            if frames:
                rows = torch.cat(frames)
                yield Window(rows, len(rows), len(rows))

        facts = {
            "width": video.width,
            "height": video.height,
            "duration_s": round(plan.duration_s, 3),
            "source_frames": video.num_frames,
            "sampled_frames": sampled.num_frames,
            "kept_frames": plan.num_frames,
            "sound": self.sound(video),
        }
        spans = _frame_spans(plan)
        name = video.name
        item = _item(
            "video", windows, (plan.num_frames, *grid), spans, reduction, tokens, name, facts
        )
        item = replace(item, unsampled=_unsampled_spans(video, plan))
        labels = tubelet_labels(label_times(video, plan), pair)
        return PlannedMedium(
            items=[item],
            lead_in=labels[0],
            step_labels=tuple("\n" + label for label in labels[1:]),
        )

    def sound(self, video: Video) -> str:
        if not video.has_audio:
            return "none"
        return "used" if self.options.audio_in_video else "not used"

    def video_grid(self, video: Video) -> tuple[int, int]:
        if not self.config.dynamic_resolution:
            return self.tile_size // self.patch, self.tile_size // self.patch
        return choose_video_grid(
            video.height,
            video.width,
            target_patches=self.config.video_target_num_patches,
            keep_aspect=self.config.video_maintain_aspect_ratio,
            downsample=self.config.merge_size,
        )

    # ------------------------------------------------------------ audio

    def audio(self, audio: Audio, name: str) -> PlannedMedium:
        if self.config.audio_config is None:
            raise RequestError(
                f"{name} is a recording, but this checkpoint has no audio tower. Leave it out, or "
                "load an omni checkpoint."
            )
        factor = self.config.audio_config.subsampling_factor
        log_mel = LogMel(self.config.audio_config.num_mel_bins)
        clips = split_clips(audio.num_samples)
        counts = [subsampled_length(length // HOP_LENGTH, factor) for _, length in clips]
        spans = tuple(
            (
                start / SAMPLING_RATE + i * TOKEN_SECONDS,
                start / SAMPLING_RATE + (i + 1) * TOKEN_SECONDS,
            )
            for (start, _), count in zip(clips, counts, strict=True)
            for i in range(count)
        )

        def windows() -> Iterator[Window]:
            for waveform, (_, length), count in zip(audio.clips(), clips, counts, strict=True):
                padded = torch.nn.functional.pad(waveform, (0, length - len(waveform)))
                yield Window(log_mel(padded), length // HOP_LENGTH, count)

        def cues() -> Mapping[str, Tensor]:
            pairs = zip(audio.clips(), counts, strict=True)
            return {"energy": torch.cat([token_energy(clip, n, factor) for clip, n in pairs])}

        reduction = self.reduction("audio")
        grid = (sum(counts), 1, 1)
        tokens = self.count("audio", grid, reduction)
        facts = {"duration_s": round(audio.duration_s, 3), "clips": len(clips)}
        item = _item("audio", windows, grid, spans, reduction, tokens, name, facts)
        return PlannedMedium(items=[replace(item, cues=cues)])


def _item(
    modality: Modality,
    windows: MakeWindows,
    grid: tuple[int, int, int],
    time_spans: tuple[tuple[float, float], ...] | None,
    reduction: str,
    num_tokens: int,
    name: str,
    facts: Mapping[str, Any],
) -> MediaItem:
    """An item without a place; the processor gives it one."""
    return MediaItem(
        modality=modality,
        windows=LazyWindows(windows),
        grid=grid,
        time_spans=time_spans,
        reduction=reduction,
        token_id=-1,
        num_tokens=num_tokens,
        name=name,
        facts=facts,
    )


def _tile_regions(sheet: tuple[int, int], width: float, height: float) -> list[list[float]]:
    """Left, top, right, bottom of each tile, and at last of the thumbnail, which shows all."""
    rows, columns = sheet
    tile_width, tile_height = width / columns, height / rows
    regions = [
        [x * tile_width, y * tile_height, (x + 1) * tile_width, (y + 1) * tile_height]
        for y in range(rows)
        for x in range(columns)
    ]
    return [*regions, [0.0, 0.0, width, height]]


def _frame_spans(plan: FramePlan) -> tuple[tuple[float, float], ...]:
    """From each sampled frame to the next; the last one to the end of the clip."""
    times = plan.timestamps_s
    end = max(plan.duration_s, times[-1] + 1 / plan.source_fps)
    return tuple(zip(times, (*times[1:], end), strict=True))


def _unsampled_spans(video: Video, plan: FramePlan) -> tuple[tuple[float, float], ...]:
    """From the first frame between two sampled ones to the second of these."""
    times = [*video.info.frame_times_s.tolist(), _frame_spans(plan)[-1][1]]
    return tuple(
        (times[sampled + 1], times[following])
        for sampled, following in pairwise((*plan.indices, video.num_frames))
        if following > sampled + 1
    )


def label_times(video: Video, plan: FramePlan) -> list[float]:
    """Seconds that the prompt states for each sampled frame.

    The released model counts time as frame index times a frame duration that is cut to whole
    milliseconds (33 ms at 30 fps), and was trained so. Where the source's frame rate varies, that
    would be wrong by any amount, and the true times are stated.

    Args:
        video: The source.
        plan: Its sampled frames.

    Returns:
        One time a frame.
    """
    tolerance_s = 1.5 / plan.source_fps
    is_steady = all(
        abs(index / plan.source_fps - time) <= tolerance_s
        for index, time in zip(plan.indices, plan.timestamps_s, strict=True)
    )
    if not is_steady:
        return list(plan.timestamps_s)
    frame_ms = int(1000.0 / plan.source_fps)
    return [index * frame_ms / 1000.0 for index in plan.indices]


def tubelet_labels(times_s: Sequence[float], frames_per_tubelet: int) -> list[str]:
    """``Frame 1 sampled at 0.00 seconds and frame 2 sampled at 0.50 seconds: `` and so on.

    Args:
        times_s: Seconds of each sampled frame.
        frames_per_tubelet: Frames that share a label; the last tubelet may have fewer.

    Returns:
        One label a tubelet.
    """
    labels = []
    for start in range(0, len(times_s), frames_per_tubelet):
        group = times_s[start : start + frames_per_tubelet]
        parts = [
            f"{'frame' if offset else 'Frame'} {start + offset + 1} sampled at {time:.2f} seconds"
            for offset, time in enumerate(group)
        ]
        labels.append(" and ".join(parts) + ": ")
    return labels
