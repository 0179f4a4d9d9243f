"""Plan each medium of a request: grid, frames, clips, and from these its token count.

Nothing is decoded here that the gateway has not decoded already: windows are made lazily when the
model encodes them, and the counts hold whatever the pixels and samples turn out to be. So a request
can be planned again and again, on lower and lower rungs of a budget's ladder (`omni.budget`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any, NamedTuple

from encoders import (
    choose_image_grid,
    choose_tiling,
    choose_video_grid,
    num_tiles,
    share_image_budget,
    split_clips,
    subsampled_length,
)
from encoders.audio.features import HOP_LENGTH, SAMPLING_RATE, LogMel
from omni.budget import AS_ASKED, MIN_FRAMES, Rung, raise_rate
from omni.config import OmniConfig
from omni.errors import ContextLengthError, RequestError
from omni.frames import choose_frames
from omni.inputs import MediaItem, Modality
from omni.labels import frame_spans, label_times, tubelet_labels, unsampled_spans
from omni.media import Audio, FramePlan, Image, Video
from omni.media.document import POINTS_PER_INCH
from omni.options import MediaOptions
from omni.planned import MakeWindows, PlannedMedium, make_item
from omni.prompt import MarkedMedium, Page, Track
from omni.reduction import check_reduction
from omni.settings import ProcessorSettings
from omni.steps import walk
from omni.windows import Patcher, TiledPicture, clip_cues, clip_windows
from token_reduction import build

TOKEN_SECONDS = 0.08  # one audio token: 8 mel frames of 10 ms


class _Sampled(NamedTuple):
    """What follows from the frames that are sampled of a video, and from those kept of them."""

    num_sampled: int
    plan: FramePlan
    spans: tuple[tuple[float, float], ...]
    unsampled: tuple[tuple[float, float], ...]
    labels: list[str]


class MediaPlanner:
    """Plans the media of one request, on any rung of a budget's ladder.

    Args:
        media: In prompt order.
        config: The model's config.
        settings: Defaults of the checkpoint.
        options: Wishes of the request.
        max_tokens: What the text leaves of the context; images share it.

    Raises:
        ContextLengthError: The images do not fit even at their smallest size, and there is no
            budget by which to reduce them.
        RequestError: A reducer spec is wrong, or the checkpoint cannot run it.
    """

    def __init__(
        self,
        media: Sequence[MarkedMedium],
        config: OmniConfig,
        settings: ProcessorSettings,
        options: MediaOptions,
        *,
        max_tokens: int,
    ) -> None:
        self.media = media
        self.config = config
        self.settings = settings
        self.options = options
        self.max_tokens = max_tokens
        self.patcher = Patcher(config)
        self.patch = config.vision_config.patch_size
        self.dpi = options.dpi or settings.document_dpi
        self.tile_size = config.force_image_size or 512  # pixels, for models that tile
        pictures = [medium for medium in media if isinstance(medium, Image | Page)]
        self.sizes = [self.size(picture) for picture in pictures]
        self.most_patches = self.image_budgets(max_tokens)
        self.kinds = {_modality(medium) for medium in media}
        for kind in self.kinds:
            check_reduction(self.reduction(kind, AS_ASKED), kind, config)
        # What of a rung bears on these media and is not set by the request.
        self.reduces = any(kind not in options.reduction for kind in self.kinds)
        self.samples = "video" in self.kinds and options.fps is None and options.num_frames is None
        self.resizes = any(self.can_resize(picture) for picture in pictures)
        # Few rungs of a ladder differ in all of these.
        self.planned = cache(self._plan)
        self.sampled = cache(self._sample)
        self.heard = cache(self._hear)

    def plan(self, rung: Rung = AS_ASKED) -> list[PlannedMedium]:
        """Plan every medium, in prompt order; the same list where a rung changes nothing.

        Raises:
            RequestError: A reducer spec is wrong for its modality.
        """
        relevant = Rung(
            rate=rung.rate if self.reduces else 0.0,
            frames=rung.frames if self.samples else 1.0,
            patches=rung.patches if self.resizes else 1.0,
        )
        return self.planned(relevant)

    def _plan(self, rung: Rung) -> list[PlannedMedium]:
        pictures = iter(zip(self.sizes, self.most_patches, strict=True))
        planned = []
        for medium in self.media:
            if isinstance(medium, Image | Page):
                planned.append(self.image(medium, *next(pictures), rung))
            elif isinstance(medium, Video):
                planned.append(self.video(medium, rung))
            elif isinstance(medium, Track):
                planned.append(self.audio(medium.audio, medium.name, rung))
            else:
                planned.append(self.audio(medium, medium.name, rung))
        return planned

    @property
    def fixed(self) -> list[str]:
        """What the request set itself for media that it has, as it is written."""
        options = self.options
        found = [
            f"{name}={getattr(options, name)}"
            for name in ("fps", "num_frames")
            if "video" in self.kinds and getattr(options, name) is not None
        ]
        if options.dpi is not None and any(isinstance(medium, Page) for medium in self.media):
            found.append(f"dpi={options.dpi}")
        if options.image_tokens is not None and "image" in self.kinds:
            found.append(f"image_tokens={options.image_tokens}")
        specs = options.reduction.items()
        return found + [f"reduction {kind}={spec}" for kind, spec in specs if kind in self.kinds]

    def reduction(self, modality: Modality, rung: Rung) -> str:
        """Spec for media of one kind: what the request set, else the checkpoint's, raised."""
        given = self.options.reduction.get(modality)
        base = self.config.reduction.get(modality, "identity")
        return given or raise_rate(base, modality, rung.rate)

    def count(self, modality: Modality, grid: tuple[int, int, int], reduction: str) -> int:
        """Tokens that an item of source cells ``grid`` becomes."""
        steps = walk(self.config, modality, grid, reduction)
        return steps[-1].shape.num_tokens if steps else grid[0] * grid[1] * grid[2]

    # ------------------------------------------------------------ pictures and pages

    def image_budgets(self, max_tokens: int) -> list[int]:
        """Most patches of each picture, so that all together fit the context."""
        if not self.config.dynamic_resolution or not self.sizes:
            return [0] * len(self.sizes)
        delimiters = 2 * len(self.sizes)
        try:
            return share_image_budget(
                self.sizes,
                max(max_tokens - delimiters, 1) * self.config.merge_size**2,
                patch_size=self.patch,
                min_patches=self.config.min_num_patches,
                max_patches=self.config.max_num_patches,
                downsample=self.config.merge_size,
            )
        except ValueError as error:
            if self.options.has_budget:
                return [self.config.min_num_patches] * len(self.sizes)
            raise ContextLengthError(
                f"The images do not fit a context of {self.settings.max_model_len} tokens: {error}"
            ) from error

    def size(self, picture: Image | Page) -> tuple[int, int]:
        """Height and width in pixels; a page is measured without rendering it."""
        if isinstance(picture, Image):
            return picture.height, picture.width
        width, height = (
            max(round(points * self.dpi / POINTS_PER_INCH), 1)
            for points in picture.document.page_size_points(picture.index)
        )
        picture.document.check_rendered(picture.index, width, height)
        return height, width

    def image(
        self, picture: Image | Page, size: tuple[int, int], max_patches: int, rung: Rung
    ) -> PlannedMedium:
        """One picture of one grid, or its tiles."""
        facts = {"width": size[1], "height": size[0]}
        chosen: dict[str, Any] = {}
        if isinstance(picture, Page):
            facts |= {"page": picture.index + 1, "dpi": self.dpi}
            chosen["dpi"] = self.dpi
        chosen["reduction"] = self.reduction("image", rung)
        share = rung.patches if self.can_resize(picture) else 1.0
        if not self.config.dynamic_resolution:
            return PlannedMedium(items=self.tiles(picture, size, share, facts, chosen))
        grid = self.image_grid(size, self.at_most(max_patches), share)
        windows = partial(self.patcher.picture, picture, self.dpi, grid)
        return PlannedMedium(items=[self.picture_item(windows, grid, picture.name, facts, chosen)])

    def can_resize(self, picture: Image | Page) -> bool:
        """A request that sets dpi has set the size of its pages; image_tokens, of all pictures."""
        if self.options.image_tokens is not None:
            return False
        return self.options.dpi is None or isinstance(picture, Image)

    def at_most(self, max_patches: int) -> int:
        """Most patches of a picture as the request sets it, never below the smallest size."""
        if self.options.image_tokens is None:
            return max_patches
        wished = self.options.image_tokens * self.config.merge_size**2
        # With exactly the smallest number, a picture would no longer be enlarged to it.
        return min(max_patches, max(wished, self.config.min_num_patches + 1))

    @property
    def most_tiles(self) -> int:
        """Most tiles of a picture, without its thumbnail."""
        if self.options.image_tokens is None:
            return self.config.max_num_tiles
        tokens = (self.tile_size // self.patch // self.config.merge_size) ** 2
        return min(self.config.max_num_tiles, max(self.options.image_tokens // tokens, 1))

    def image_grid(self, size: tuple[int, int], max_patches: int, share: float) -> tuple[int, int]:
        """The grid as asked, or one of a share of its patches, never below the smallest."""
        grid = partial(
            choose_image_grid,
            *size,
            patch_size=self.patch,
            min_patches=self.config.min_num_patches,
            downsample=self.config.merge_size,
        )
        asked = grid(max_patches=max_patches)
        # A picture may not have exactly the smallest number: it would no longer be enlarged to it.
        least = self.config.min_num_patches + 1
        lowered = max(int(share * asked[0] * asked[1]), least)
        chosen = grid(max_patches=min(lowered, max_patches)) if share < 1 else asked
        return chosen if self.options.image_tokens is None else self._within(chosen, max_patches)

    def _within(self, grid: tuple[int, int], max_patches: int) -> tuple[int, int]:
        """A grid that keeps to a number of patches, where rounding up a thin side has gone over."""
        short, merge = min(grid), self.config.merge_size
        longest = max(max_patches // short // merge * merge, merge)
        return min(grid[0], longest), min(grid[1], longest)

    def tiles(
        self,
        picture: Image | Page,
        size: tuple[int, int],
        share: float,
        facts: Mapping[str, Any],
        chosen: Mapping[str, Any],
    ) -> list[MediaItem]:
        """V2-VL: square tiles and a thumbnail, each an item, all in one pair of delimiters."""
        sheet = choose_tiling(*size, max_tiles=self.most_tiles, tile_size=self.tile_size)
        if share < 1:
            fewer = max(int(share * sheet[0] * sheet[1]), 1)
            sheet = choose_tiling(*size, max_tiles=fewer, tile_size=self.tile_size)
        side = self.tile_size // self.patch
        count = num_tiles(sheet, thumbnail=self.config.use_thumbnail)

        tiled = TiledPicture(self.config, picture, self.dpi, sheet, self.tile_size)
        return [
            self.picture_item(
                partial(tiled.tile, tile),
                (side, side),
                f"{picture.name} tile {tile + 1} of {count}",
                {**facts, "region": tiled.region(tile, *size)},
                {"tiles": count, **chosen},
            )
            for tile in range(count)
        ]

    def picture_item(
        self,
        windows: MakeWindows,
        grid: tuple[int, int],
        name: str,
        facts: Mapping[str, Any],
        chosen: Mapping[str, Any],
    ) -> MediaItem:
        """The item of one grid."""
        source = (1, *grid)
        tokens = self.count("image", source, chosen["reduction"])
        chosen = {"grid": list(grid), **chosen}
        rows = grid[0] * grid[1]
        return make_item("image", windows, source, None, tokens, name, facts, chosen, rows)

    # ------------------------------------------------------------ video

    def video(self, video: Video, rung: Rung) -> PlannedMedium:
        """Sampled frames of one size, encoded a few tubelets at a time."""
        found = self.sampled(video, self.num_frames(video, rung.frames))
        grid = self.video_grid(video)
        pair = self.config.tubelet_frames
        source = (found.plan.num_frames, *grid)
        reduction = self.reduction("video", rung)
        group = max(self.settings.frames_per_window // pair, 1) * pair

        windows = partial(self.patcher.video, video, found.plan, grid, group)
        facts = {
            "width": video.width,
            "height": video.height,
            "duration_s": round(found.plan.duration_s, 3),
            "source_frames": video.num_frames,
            "sampled_frames": found.num_sampled,
            "kept_frames": found.plan.num_frames,
            "sound": self.sound(video),
        }
        duration_s = max(found.plan.duration_s, 1 / found.plan.source_fps)
        chosen = {
            "grid": list(grid),
            "num_frames": found.num_sampled,
            "fps": round(found.num_sampled / duration_s, 3),
            "reduction": reduction,
        }
        tokens = self.count("video", source, reduction)
        rows = min(group, source[0]) * grid[0] * grid[1]
        item = make_item(
            "video", windows, source, found.spans, tokens, video.name, facts, chosen, rows
        )
        return PlannedMedium(
            items=[replace(item, unsampled=found.unsampled)],
            lead_in=found.labels[0],
            step_labels=tuple("\n" + label for label in found.labels[1:]),
        )

    def num_frames(self, video: Video, share: float) -> int:
        """Frames to sample: as asked, or a share of them in whole tubelets."""
        most, pair = self.options.num_frames or self.settings.num_frames, self.config.tubelet_frames
        asked = self.sampled(video, most).num_sampled
        if share == 1:
            return asked
        lowered = int(share * asked) // pair * pair
        return min(max(lowered, MIN_FRAMES, pair), asked)

    def _sample(self, video: Video, num_frames: int) -> _Sampled:
        sampled = video.plan(fps=self.options.fps or self.settings.fps, num_frames=num_frames)
        # Lower rungs remove tokens after the projector: frames are chosen by the same reducer.
        reducer = build(self.reduction("video", AS_ASKED)).part("frames")
        plan = choose_frames(video, sampled, reducer)
        labels = tubelet_labels(label_times(video, plan), self.config.tubelet_frames)
        spans, unsampled = frame_spans(plan), unsampled_spans(video, plan)
        return _Sampled(sampled.num_frames, plan, spans, unsampled, labels)

    def sound(self, video: Video) -> str:
        """Whether a video's sound track is part of the request."""
        if video.has_audio and not self.options.audio_in_video:
            return "not used"
        tracks = (medium for medium in self.media if isinstance(medium, Track))
        return "used" if any(track.video_name == video.name for track in tracks) else "none"

    def video_grid(self, video: Video) -> tuple[int, int]:
        """Patches of each frame; the same on all rungs."""
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

    def audio(self, audio: Audio, name: str, rung: Rung) -> PlannedMedium:
        """A recording in clips of 30 s."""
        if self.config.audio_config is None:
            raise RequestError(
                f"{name} is a recording, but this checkpoint has no audio tower. Leave it out, or "
                "load an omni checkpoint."
            )
        clips, counts, spans = self.heard(audio)
        tower = self.config.audio_config
        log_mel = LogMel(tower.num_mel_bins, normalize=self.config.audio_normalize)
        windows = partial(clip_windows, audio, clips, counts, log_mel)
        source = (sum(counts), 1, 1)
        chosen = {"reduction": self.reduction("audio", rung)}
        tokens = self.count("audio", source, chosen["reduction"])
        facts = {"duration_s": round(audio.duration_s, 3), "clips": len(clips)}
        rows = max(length for _, length in clips) // HOP_LENGTH
        item = make_item("audio", windows, source, spans, tokens, name, facts, chosen, rows)
        cues = partial(clip_cues, audio, counts, tower.subsampling_factor)
        return PlannedMedium(items=[replace(item, cues=cues, envelope=audio.envelope)])

    def _hear(
        self, audio: Audio
    ) -> tuple[list[tuple[int, int]], list[int], tuple[tuple[float, float], ...]]:
        """Clips, the tokens of each, and the seconds of every token."""
        factor = self.config.audio_config.subsampling_factor
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
        return clips, counts, spans


def _modality(medium: MarkedMedium) -> Modality:
    if isinstance(medium, Image | Page):
        return "image"
    return "video" if isinstance(medium, Video) else "audio"
