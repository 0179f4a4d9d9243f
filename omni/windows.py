"""Encoder inputs, made when they are needed: patches of pictures and frames, spectrograms of clips.

`omni.planning` decides sizes and counts; nothing here changes them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from encoders import LogMel, resize_and_patchify, tile_image, token_energy
from encoders.audio.features import HOP_LENGTH
from omni.config import OmniConfig
from omni.inputs import Window
from omni.media import Audio, FramePlan, Image, Video
from omni.prompt import Page

Grid = tuple[int, int]  # patches high and wide


def pixels_of(picture: Image | Page, dpi: int) -> Tensor:
    """Pixels of a picture; a page is rendered now."""
    if isinstance(picture, Image):
        return picture.pixels
    return picture.document.render(picture.index, dpi=dpi).pixels


@dataclass(frozen=True, slots=True)
class Patcher:
    """Cuts pictures and frames into the patch rows of one model."""

    config: OmniConfig

    def rows(self, frames: Tensor, grid: Grid) -> Tensor:
        """Patch rows of pictures of one size."""
        return resize_and_patchify(
            frames,
            grid,
            patch_size=self.config.vision_config.patch_size,
            mean=self.config.norm_mean,
            std=self.config.norm_std,
        )

    def picture(self, picture: Image | Page, dpi: int, grid: Grid) -> Iterator[Window]:
        """One window of a whole picture."""
        yield _window(self.rows(pixels_of(picture, dpi)[None], grid))

    def video(self, video: Video, plan: FramePlan, grid: Grid, group: int) -> Iterator[Window]:
        """Windows of ``group`` frames, decoded as they are asked for."""
        frames: list[Tensor] = []
        for frame in video.frames(plan):
            frames.append(self.rows(frame[None], grid))
            if len(frames) == group:
                rows = torch.cat(frames)
                frames = []
                yield _window(rows)
        if frames:
            yield _window(torch.cat(frames))


@dataclass(slots=True)
class TiledPicture:
    """The tiles of one picture, cut when the first of them is asked for."""

    config: OmniConfig
    picture: Image | Page
    dpi: int
    sheet: tuple[int, int]  # rows and columns of tiles
    tile_size: int  # pixels
    _tiles: tuple[Tensor, ...] = field(default=(), init=False)

    def tile(self, index: int) -> Iterator[Window]:
        """One window of the tile of this number; the thumbnail is the last."""
        if not self._tiles:
            tiled = tile_image(
                pixels_of(self.picture, self.dpi),
                tiling=self.sheet,
                thumbnail=self.config.use_thumbnail,
                tile_size=self.tile_size,
                patch_size=self.config.vision_config.patch_size,
                mean=tuple(self.config.norm_mean),
                std=tuple(self.config.norm_std),
            )
            self._tiles = tiled.patches.split(tiled.grids.prod(1).tolist())
        yield _window(self._tiles[index])

    def region(self, index: int, height: float, width: float) -> list[float]:
        """Left, top, right and bottom of a tile; the thumbnail shows all of the picture."""
        rows, columns = self.sheet
        if index == rows * columns:
            return [0.0, 0.0, width, height]
        y, x = divmod(index, columns)
        tile_width, tile_height = width / columns, height / rows
        return [x * tile_width, y * tile_height, (x + 1) * tile_width, (y + 1) * tile_height]


def clip_windows(
    audio: Audio, clips: Sequence[tuple[int, int]], counts: Sequence[int], log_mel: LogMel
) -> Iterator[Window]:
    """Spectrograms of consecutive clips.

    Args:
        audio: The recording.
        clips: Start and length of each clip in samples.
        counts: Tokens of each clip.
        log_mel: What makes them, as the audio tower knows them.
    """
    for waveform, (_, length), count in zip(audio.clips(), clips, counts, strict=True):
        padded = F.pad(waveform, (0, length - len(waveform)))
        yield Window(log_mel(padded), length // HOP_LENGTH, count)


def clip_cues(audio: Audio, counts: Sequence[int], factor: int) -> dict[str, Tensor]:
    """How loud each token of a recording is; reads it once.

    Args:
        audio: The recording.
        counts: Tokens of each clip.
        factor: Mel frames in one token.
    """
    pairs = zip(audio.clips(), counts, strict=True)
    return {"energy": torch.cat([token_energy(clip, count, factor) for clip, count in pairs])}


def _window(rows: Tensor) -> Window:
    return Window(rows, len(rows), len(rows))
