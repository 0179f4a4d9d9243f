"""The vision tower of `omni-tiny`, its direct heads and how they are initialised.

The heads exist for the first training stage only: they make the tower's patch features carry
what a small language model later reads from them. Each reads patch features, or the 2 x 2 folded
features that the projector gets; none reads the class token, which the product drops.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, RadioConfig, RadioModel

from finetune.tiny.drawing import COLOURS, DIRECTIONS, SHAPES
from finetune.tiny.printed import CHARACTERS, MAX_CHARACTERS
from finetune.tiny.scenes import MAX_SHAPES

NUM_SYMBOLS = len(CHARACTERS) + 1  # symbol 0 is "nothing here"
SUBCOLUMNS = 2  # a patch column is 16 pixels wide, often wider than a character
NUM_PHOTO_CLASSES = 10


class Part(NamedTuple):
    """Pictures of one grid, or tubelets of one grid, on their way into the tower."""

    patches: Float[Tensor, "items patches values"]
    """3 * 16 * 16 values a patch for pictures, twice as many for tubelets of two frames."""
    grid: tuple[int, int]


def tower_config() -> RadioConfig:
    """Return the configuration of the vision tower of `omni-tiny`."""
    return RadioConfig(
        hidden_size=192,
        num_hidden_layers=6,
        num_attention_heads=3,
        mlp_ratio=4.0,
        patch_size=16,
        max_img_size=512,
        num_cls_tokens=1,
        num_registers=3,
        summary_idxs=[0],
        video_temporal_patch_size=2,
        layerscale_value=1.0,
    )


def build_tower(config: RadioConfig) -> RadioModel:
    """Build the tower with weights that train well at small width.

    Position table of sines and cosines, Xavier linears, and "mimetic" attention (Trockman and
    Kolter 2023): queries start similar to keys of the same place, and the value path starts near
    a negative identity, as in towers trained for long. That is worth many epochs here.

    Args:
        config: Configuration of the tower; pixels are normalised outside.
    """
    AttentionInterface.register("matmul", _matmul_attention)
    tower = RadioModel(config)
    tower.make_preprocessor_external()
    tower.set_attn_implementation("matmul")
    with torch.no_grad():
        for module in tower.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
        embeddings = tower.embeddings
        embeddings.position_embedding.copy_(
            _sine_table(embeddings.max_rows, embeddings.max_cols, config.hidden_size)
        )
        for layer in tower.encoder.layer:
            attention = layer.attention
            _mimic_trained_attention(
                attention.q_proj,
                attention.k_proj,
                attention.v_proj,
                attention.o_proj,
                config.num_attention_heads,
            )
            layer.mlp.fc2.weight.mul_(1 / math.sqrt(2 * config.num_hidden_layers))
    return tower


def encode(tower: RadioModel, parts: Sequence[Part]) -> list[Float[Tensor, "items patches hidden"]]:
    """Run pictures and tubelets through the tower; parts of the same grid share one pass.

    Equals the tower's packed forward, one item at a time, and is faster because items of one
    grid form a dense batch.

    Args:
        tower: Tower with external normalisation.
        parts: What to encode.

    Returns:
        For each part its patch features, prefix tokens dropped.
    """
    embeddings, num_prefix = tower.embeddings, tower.config.num_summary_tokens
    by_grid: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, part in enumerate(parts):
        by_grid[part.grid].append(index)

    features: dict[int, Tensor] = {}
    for grid, indices in by_grid.items():
        embedded = []
        for index in indices:
            patches = parts[index].patches
            is_video = patches.shape[-1] == tower.config.video_patch_dim
            project = embeddings.video_patch_projection if is_video else embeddings.patch_projection
            embedded.append(project(patches))
        hidden = torch.cat(embedded)
        hidden = hidden + embeddings._interpolate_position_embedding(grid, hidden.dtype)
        prefix = embeddings.cls_register_token.to(hidden.dtype).expand(len(hidden), -1, -1)
        hidden = torch.cat([prefix, hidden], dim=1)  # (items, prefix + patches, hidden)
        hidden = tower.encoder(hidden).last_hidden_state[:, num_prefix:]
        sizes = [len(parts[index].patches) for index in indices]
        features.update(zip(indices, hidden.split(sizes), strict=True))
    return [features[index] for index in range(len(parts))]


def fold(
    features: Float[Tensor, "items patches hidden"], grid: tuple[int, int]
) -> Float[Tensor, "items tokens hidden*4"]:
    """Fold 2 x 2 neighbouring patches into one token, as the product does after the tower.

    Args:
        features: Patch features, row by row.
        grid: `(grid_height, grid_width)`, both even.
    """
    items, _, hidden = features.shape
    rows, columns = grid
    blocks = features.reshape(items, rows // 2, 2, columns // 2, 2, hidden)
    return blocks.permute(0, 1, 3, 2, 4, 5).reshape(items, rows * columns // 4, 4 * hidden)


class PooledHead(nn.Module):
    """Class scores from the mean of the normalised folded tokens: for what fills the picture."""

    def __init__(self, hidden_size: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * hidden_size)
        self.classify = nn.Linear(4 * hidden_size, num_classes)

    def forward(self, tokens: Float[Tensor, "items tokens folded"]) -> Tensor:
        """Return `(items, num_classes)` scores."""
        return self.classify(self.norm(tokens).mean(1))


class AttentiveHead(nn.Module):
    """Class scores from a learned weighted mean of folded tokens: for what fills a few of them."""

    def __init__(self, hidden_size: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * hidden_size)
        self.weigh = nn.Linear(4 * hidden_size, 1)
        self.classify = nn.Linear(4 * hidden_size, num_classes)

    def forward(self, tokens: Float[Tensor, "items tokens folded"]) -> Tensor:
        """Return `(items, num_classes)` scores."""
        tokens = self.norm(tokens)
        weights = self.weigh(tokens).float().softmax(1)  # (items, tokens, 1)
        return self.classify((weights * tokens).sum(1))


class PlaceHead(nn.Module):
    """For each patch: which character, and which one of the line, stands at each subcolumn."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.symbol = nn.Linear(hidden_size, SUBCOLUMNS * NUM_SYMBOLS)
        self.index = nn.Linear(hidden_size, SUBCOLUMNS * (MAX_CHARACTERS + 1))

    def forward(self, features: Float[Tensor, "items patches hidden"]) -> tuple[Tensor, Tensor]:
        """Return scores `(items, patches, subcolumns, symbols)` and `(.., 13)`, 0 = nothing."""
        hidden = self.norm(features)
        return (
            self.symbol(hidden).unflatten(-1, (SUBCOLUMNS, NUM_SYMBOLS)),
            self.index(hidden).unflatten(-1, (SUBCOLUMNS, MAX_CHARACTERS + 1)),
        )


class CoverHead(nn.Module):
    """For each quarter of a patch, in each frame of a tubelet: does the shape cover it."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.cover = nn.Linear(hidden_size, 2 * 4 * 2)

    def forward(self, features: Float[Tensor, "items patches hidden"]) -> Tensor:
        """Return scores `(items, patches, 8, 2)`: four quarters of frame 0, then of frame 1."""
        return self.cover(self.norm(features)).unflatten(-1, (8, 2))


class SceneHead(nn.Module):
    """For each patch: colour and shape of what is there, whether it is its centre, and outermost.

    Outermost is asked of four sides; and the how manyth from the left it is, in three ways: of all
    shapes, of those of its colour, and of those of its kind.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.thing_colour = nn.Linear(hidden_size, 1 + len(COLOURS))
        self.thing_shape = nn.Linear(hidden_size, 1 + len(SHAPES))
        self.centre = nn.Linear(hidden_size, 2)
        self.outermost = nn.Linear(hidden_size, 4 * 2)
        self.rank = nn.Linear(hidden_size, 3 * (1 + MAX_SHAPES))

    def forward(self, features: Float[Tensor, "items patches hidden"]) -> dict[str, Tensor]:
        """Return scores by target, `(items, patches, classes)`; of some `(.., n, classes)`."""
        hidden = self.norm(features)
        return {
            "thing_colour": self.thing_colour(hidden),
            "thing_shape": self.thing_shape(hidden),
            "centre": self.centre(hidden),
            "outermost": self.outermost(hidden).unflatten(-1, (4, 2)),
            "rank": self.rank(hidden).unflatten(-1, (3, 1 + MAX_SHAPES)),
        }


class ReadingHead(nn.Module):
    """Twelve learned queries look at the folded tokens once and name the character of each index.

    One look and no positions of its own: index and identity must both be in the features.
    """

    def __init__(self, hidden_size: int, num_heads: int = 3) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(4 * hidden_size)
        self.queries = nn.Parameter(torch.randn(MAX_CHARACTERS, hidden_size))
        self.key = nn.Linear(4 * hidden_size, hidden_size)
        self.value = nn.Linear(4 * hidden_size, 2 * hidden_size)
        self.hidden = nn.Linear(2 * hidden_size, 2 * hidden_size)
        self.symbol = nn.Linear(2 * hidden_size, NUM_SYMBOLS)

    def forward(self, tokens: Float[Tensor, "items tokens folded"]) -> Tensor:
        """Return `(items, 12, symbols)` scores; symbol 0 after the end of the line."""
        tokens = self.norm(tokens)
        split = (self.num_heads, -1)
        query = self.queries.unflatten(-1, split).transpose(0, 1)  # (heads, 12, head)
        key = self.key(tokens).unflatten(-1, split).transpose(1, 2)  # (items, heads, tokens, head)
        value = self.value(tokens).unflatten(-1, split).transpose(1, 2)
        scores = (query @ key.transpose(2, 3)).float() / math.sqrt(key.shape[-1])
        read = (scores.softmax(-1) @ value.float()).transpose(1, 2).flatten(2)
        return self.symbol(F.gelu(read + self.hidden(read)))


class VisionHeads(nn.Module):
    """All direct heads, one attribute a task."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.photo = PooledHead(hidden_size, NUM_PHOTO_CLASSES)
        self.digit = PooledHead(hidden_size, 10)
        self.colour = AttentiveHead(hidden_size, len(COLOURS))
        self.shape = AttentiveHead(hidden_size, len(SHAPES))
        self.direction = AttentiveHead(hidden_size, len(DIRECTIONS))
        self.place = PlaceHead(hidden_size)
        self.reading = ReadingHead(hidden_size)
        self.cover = CoverHead(hidden_size)
        self.scene = SceneHead(hidden_size)
        self.count = PooledHead(hidden_size, MAX_SHAPES)


def _matmul_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **_: object,
) -> tuple[Tensor, None]:
    """Plain attention: for sequences this short faster on a CPU in bfloat16 than fused ones."""
    weights = (query @ key.transpose(2, 3)).float().mul(scaling).softmax(-1)
    return (weights.to(value.dtype) @ value).transpose(1, 2), None


def _sine_table(rows: int, columns: int, width: int) -> Float[Tensor, "1 places width"]:
    """Sines and cosines of row and column at wavelengths from 6 cells to 6 tables."""
    longest, shortest = 6 * max(rows, columns), 6
    count = width // 4
    wavelengths = shortest * (longest / shortest) ** (torch.arange(count) / (count - 1))
    angles = [
        2 * math.pi * torch.arange(n)[:, None] / wavelengths for n in (rows, columns)
    ]  # (n, count) each
    down, across = [torch.cat([a.sin(), a.cos()], dim=1) for a in angles]
    table = torch.cat(
        [
            down[:, None, :].expand(rows, columns, -1),
            across[None, :, :].expand(rows, columns, -1),
        ],
        dim=-1,
    )
    return table.reshape(1, rows * columns, width)


def _mimic_trained_attention(
    query: nn.Linear, key: nn.Linear, value: nn.Linear, output: nn.Linear, num_heads: int
) -> None:
    """Set q, k so that q^T k ~ 0.7 I + noise a head, and v, o so that o v ~ noise - 0.4 I."""
    width = query.in_features
    head_dim = query.out_features // num_heads
    identity = torch.eye(width)
    for head in range(num_heads):
        rows = slice(head * head_dim, (head + 1) * head_dim)
        wished = 0.7 * identity + 0.7 * torch.randn(width, width) / math.sqrt(width)
        left, singular, right = torch.linalg.svd(wished)
        root = singular[:head_dim].sqrt()[:, None]
        query.weight[rows] = root * left[:, :head_dim].T
        key.weight[rows] = root * right[:head_dim]
    wished = 0.4 * torch.randn(width, width) / math.sqrt(width) - 0.4 * identity
    left, singular, right = torch.linalg.svd(wished)
    output.weight.copy_(left * singular.sqrt())
    value.weight.copy_(singular.sqrt()[:, None] * right)
