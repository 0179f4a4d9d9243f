"""C-RADIO vision tower: transformers' model with the two entrances that an omni model needs.

Shape legend
  P = patches of all items together, n = items (images or tubelets),
  gh, gw = patch grid of an item, p = patch side in pixels, T = frames in a tubelet.

The tower sees no time: tubelets are encoded as if they were images, through an embedder of
their own whose rows hold T frames. Nothing attends across items.
"""

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import RadioConfig
from transformers.models.radio.modeling_radio import RadioModel, RadioPatchEmbeddings

from encoders.vision.merging import TokenMerging, run_merging_blocks
from encoders.vision.preprocessing import unpatchify

# Patches in one pass. Bounds the memory of long videos; the result does not depend on it.
MAX_PATCHES_PER_PASS = 32_768


class StripEmbeddings(RadioPatchEmbeddings):
    """`RadioPatchEmbeddings` that makes no more positions than an item has patches.

    The table is stretched over a square of the item's longer side, of which the item takes the
    upper left part. transformers makes the whole square: of a strip of 2 x 3,616 patches at the
    released width 67 GB. Here the rows and columns outside the item are never made.
    """

    def _interpolate_position_embedding(
        self, input_dims: tuple[int, int], dtype: torch.dtype
    ) -> Float[Tensor, "1 patches hidden"]:
        """Positions of an item of `input_dims` (gh, gw), bit by bit those of transformers."""
        sizes, side = (self.max_rows, self.max_cols), max(input_dims)
        table = self.position_embedding.unflatten(1, sizes).permute(0, 3, 1, 2)
        # An axis that comes out as long as it went in PyTorch takes for one that is not stretched.
        made = [
            length + (length == size != side)
            for length, size in zip(input_dims, sizes, strict=True)
        ]
        scales = [side / size for size in sizes]  # of the square, not of the item
        positions = torch.ops.aten.upsample_bilinear2d(table.float(), made, False, *scales)
        positions = positions[..., : input_dims[0], : input_dims[1]].to(dtype)
        return positions.flatten(2).transpose(1, 2)


class RadioTower(RadioModel):
    """C-RADIO over patch rows instead of pictures; parameter names are those of `RadioModel`.

    Normalisation happens in preprocessing, so the tower has no input conditioner. A state dict
    of a `RadioModel` still loads strictly: the two constants of its conditioner are skipped.
    """

    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"input_conditioner\.norm_"]

    def __init__(self, config: RadioConfig) -> None:
        super().__init__(config)
        self.make_preprocessor_external()
        self.embeddings.__class__ = StripEmbeddings  # the same weights, initialised already
        self.register_load_state_dict_pre_hook(_skip_input_conditioner)

    def encode_images(
        self,
        patches: Float[Tensor, "patches values"],
        grids: Int[Tensor, "images 2"],
        merging: TokenMerging | None = None,
    ) -> Float[Tensor, "patches hidden"]:
        """Encode images of any grids at once; each attends to itself only.

        Args:
            patches: Normalised rows of all images, one image after the other, `(P, 3*p*p)`.
            grids: `(gh, gw)` of each image.
            merging: Merge similar patches between the blocks; they come back with equal rows.

        Returns:
            One row per patch, in the order of `patches`; class and register tokens are dropped.

        Raises:
            ValueError: If the rows do not match the grids or are not `3*p*p` wide.
        """
        sizes = [(int(rows), int(columns)) for rows, columns in grids.tolist()]
        counts = [rows * columns for rows, columns in sizes]
        self._check_width(patches, self.config.patch_dim)
        if sum(counts) != len(patches):
            raise ValueError(
                f"The grids of {len(sizes)} images hold {sum(counts)} patches, but "
                f"{len(patches)} rows came; pass the rows of exactly these images."
            )
        if not sizes:
            return patches.new_zeros(0, self.config.hidden_size, dtype=self.dtype)
        if len(set(sizes)) == 1:
            return self._encode_dense(patches, sizes[0], merging)
        if merging is not None:  # counts differ from grid to grid
            pairs = zip(patches.split(counts), sizes, strict=True)
            return torch.cat([self._encode_dense(rows, size, merging) for rows, size in pairs])
        features = []
        start = 0
        for first, last in _windows(counts):
            rows = patches[start : start + sum(counts[first:last])].to(self.dtype)
            packed = self(rows, image_grid_hw=grids[first:last].to(rows.device))
            features.append(packed.features)
            start += len(rows)
        return torch.cat(features)

    def encode_video(
        self,
        tubelets: Float[Tensor, "patches values"],
        grid: tuple[int, int],
        merging: TokenMerging | None = None,
    ) -> Float[Tensor, "patches hidden"]:
        """Encode tubelets of one grid; any number of videos may be concatenated.

        Args:
            tubelets: Normalised rows `(n*gh*gw, T*3*p*p)`, tubelet by tubelet, patches row by
                row, values in (frame, channel, y, x) order.
            grid: `(gh, gw)` of every frame.
            merging: As in `encode_images`.

        Returns:
            One row per patch, in the order of `tubelets`.

        Raises:
            ValueError: If the tower has no video embedder, or the rows do not fill whole
                tubelets or have another width.
        """
        if self.config.video_temporal_patch_size is None:
            raise ValueError(
                "This tower has no video embedder (video_temporal_patch_size is None); encode "
                "the frames with encode_images instead."
            )
        self._check_width(tubelets, self.config.video_patch_dim)
        per_tubelet = grid[0] * grid[1]
        if per_tubelet < 1 or len(tubelets) % per_tubelet:
            raise ValueError(
                f"{len(tubelets)} rows do not fill whole tubelets of {grid[0]}x{grid[1]} patches; "
                "pass all patches of every tubelet."
            )
        if not len(tubelets):
            return tubelets.new_zeros(0, self.config.hidden_size, dtype=self.dtype)
        return self._encode_dense(tubelets, grid, merging)

    def _encode_dense(
        self, patches: Tensor, grid: tuple[int, int], merging: TokenMerging | None
    ) -> Tensor:
        """Run items of one grid as plain batches; the embedder tells video by its channels."""
        per_item = grid[0] * grid[1]
        items_per_pass = max(1, MAX_PATCHES_PER_PASS // per_item)
        features = []
        for rows in patches.split(items_per_pass * per_item):
            items = rows.to(self.dtype).unflatten(0, (-1, per_item))  # (n, gh*gw, values)
            pixels = unpatchify(items, grid, self.config.patch_size)
            embedded = self.embeddings(pixels)
            if merging is None:
                hidden_states = self.encoder(embedded).last_hidden_state
            else:
                hidden_states = run_merging_blocks(
                    self.encoder.layer, embedded, merging, self.config.num_summary_tokens
                )
            features.append(hidden_states[:, self.config.num_summary_tokens :].flatten(0, 1))
        return torch.cat(features) if len(features) > 1 else features[0]

    def _check_width(self, patches: Tensor, expected: int) -> None:
        if patches.shape[-1] != expected:
            raise ValueError(
                f"Rows have {patches.shape[-1]} values, but this tower takes {expected} "
                f"(patch side {self.config.patch_size}); check the preprocessing."
            )


def _windows(counts: list[int]) -> Iterator[tuple[int, int]]:
    """Yield `(first, last)` of runs of items with at most `MAX_PATCHES_PER_PASS` patches."""
    first = patches = 0
    for index, count in enumerate(counts):
        if index > first and patches + count > MAX_PATCHES_PER_PASS:
            yield first, index
            first, patches = index, 0
        patches += count
    yield first, len(counts)


def _skip_input_conditioner(
    _module: torch.nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any
) -> None:
    for name in ("norm_mean", "norm_std"):
        state_dict.pop(f"{prefix}input_conditioner.{name}", None)
