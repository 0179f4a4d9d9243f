"""Any vision transformer of timm as a vision tower.

timm is imported when a tower is built: it takes a second, and most programs need none.
"""

import difflib
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from encoders.vision.preprocessing import unpatchify

# What comes after the tower in timm's checkpoints; DeiT has a second one for distillation.
CLASSIFIERS = ("head.", "head_dist.")


class TimmTower(nn.Module):
    """A timm ViT over patch rows: images of any grid in, one row per patch out.

    Steps of a pass: images of one grid form a batch, the learned position table is resized to
    that grid, the blocks run, class and register tokens are dropped.

    Args:
        vit: Name of a timm model, built without weights from the network, or a module built with
            `dynamic_img_size=True`. ViT, DeiT, DINO, CLIP and SigLIP towers (`VisionTransformer`)
            and EVA towers (`Eva`) are taken.
        checkpoint: Local weights file for a model given by name; its classifier, if it has one, is
            left out.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the name is unknown, the model is no ViT, its size is fixed, it looks at the
            image through a convolutional network, or the weights are those of another model.
    """

    vit: Any  # a timm model; its attributes are known by name only

    def __init__(
        self, vit: str | nn.Module = "vit_base_patch16_224", *, checkpoint: Path | None = None
    ) -> None:
        from timm.models.eva import Eva
        from timm.models.vision_transformer import VisionTransformer

        super().__init__()
        self.vit = _build_vit(vit, checkpoint) if isinstance(vit, str) else vit
        if not isinstance(self.vit, VisionTransformer | Eva):
            raise ValueError(
                f"{type(self.vit).__name__} is not a vision transformer of one patch grid; a tower "
                "needs a timm VisionTransformer or Eva, such as 'vit_base_patch16_224'."
            )
        if not self.vit.dynamic_img_size:
            raise ValueError(
                f"This {type(self.vit).__name__} takes one image size only; build it with "
                "dynamic_img_size=True."
            )
        if hasattr(self.vit.patch_embed, "backbone"):
            raise ValueError(
                f"This {type(self.vit).__name__} is a hybrid: it looks at the image through a "
                f"{type(self.vit.patch_embed.backbone).__name__}, so its tokens are not the "
                "patches of a grid. Choose a ViT without one, such as 'vit_base_patch16_224'."
            )

    @property
    def hidden_size(self) -> int:
        """Width of the rows that the tower returns."""
        return int(self.vit.num_features)

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return int(self.vit.patch_embed.patch_size[0])

    @property
    def image_mean(self) -> tuple[float, ...]:
        """Per-channel mean that the weights were trained with, for `resize_and_patchify`."""
        return tuple(self.vit.pretrained_cfg["mean"])

    @property
    def image_std(self) -> tuple[float, ...]:
        """Per-channel deviation that the weights were trained with."""
        return tuple(self.vit.pretrained_cfg["std"])

    def forward(
        self, pixel_values: Float[Tensor, "images channels height width"]
    ) -> Float[Tensor, "images patches hidden"]:
        """Encode images of one size, whose sides are multiples of the patch size."""
        hidden_states = self.vit.forward_features(pixel_values)
        return hidden_states[:, self.vit.num_prefix_tokens :]

    def encode_images(
        self, patches: Float[Tensor, "patches values"], grids: Int[Tensor, "images 2"]
    ) -> Float[Tensor, "patches hidden"]:
        """Encode images of any grids; each attends to itself only.

        Args:
            patches: Normalised rows of all images, one image after the other, `(P, 3*p*p)`.
            grids: `(grid_height, grid_width)` of each image.

        Returns:
            One row per patch, in the order of `patches`.

        Raises:
            ValueError: If the rows do not match the grids or are not `3*p*p` wide.
        """
        sizes = [(int(rows), int(columns)) for rows, columns in grids.tolist()]
        counts = [rows * columns for rows, columns in sizes]
        width = 3 * self.patch_size**2
        if patches.shape[-1] != width or sum(counts) != len(patches):
            raise ValueError(
                f"{len(sizes)} images of {sum(counts)} patches with {width} values were announced, "
                f"but the rows are {tuple(patches.shape)}; check grids and patch size "
                f"({self.patch_size})."
            )
        weight = self.vit.patch_embed.proj.weight
        images = patches.to(weight.dtype).split(counts)
        features: dict[int, Tensor] = {}
        for size in set(sizes):
            same = [index for index, other in enumerate(sizes) if other == size]
            batch = torch.stack([images[index] for index in same])
            features.update(zip(same, self(unpatchify(batch, size, self.patch_size)), strict=True))
        if not features:
            return weight.new_zeros(0, self.hidden_size)
        return torch.cat([features[index] for index in range(len(sizes))])


def _build_vit(name: str, checkpoint: Path | None) -> nn.Module:
    import timm

    if not timm.is_model(name):
        nearest = difflib.get_close_matches(name, timm.list_models(), n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else "."
        raise ValueError(f"timm has no model named {name!r}{hint}")
    try:
        vit = timm.create_model(name, pretrained=False, num_classes=0, dynamic_img_size=True)
    except TypeError as error:  # the constructors of other families do not know the argument
        raise ValueError(
            f"{name!r} is not a vision transformer that can change its image size; choose one "
            "such as 'vit_base_patch16_224'."
        ) from error
    if checkpoint is not None:
        _load_weights(vit, name, checkpoint)
    return vit


def _load_weights(vit: nn.Module, name: str, checkpoint: Path) -> None:
    """Load all weights of a tower from a file that may also hold a classifier."""
    from timm.models import load_checkpoint

    if not Path(checkpoint).is_file():
        raise FileNotFoundError(
            f"There is no file {str(checkpoint)!r}; expected the weights of {name!r}. "
            "Check the path."
        )
    found = load_checkpoint(vit, str(checkpoint), strict=False)
    if found is None:  # NumPy archives of the first ViTs, which timm converts
        return
    unknown = [key for key in found.unexpected_keys if not key.startswith(CLASSIFIERS)]
    if found.missing_keys or unknown:
        raise ValueError(
            f"{str(checkpoint)!r} does not hold the weights of {name!r}: missing are "
            f"{_some(found.missing_keys)}, unknown {_some(unknown)}. Name the model that the file "
            "was saved from."
        )


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "") or "none"
