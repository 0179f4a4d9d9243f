"""Query resampling: K learned queries read a picture or a recording by cross-attention.

    A_m = softmax over tokens of  q_m(u[k]) k_m(x[i] + P p[i]) / sqrt(F / M) - s |p[i] - c[k]|^2
    z   = u + W [A_1 v_1(x), ..., A_M v_M(x)]
    y   = (mean over m of A_m) x + W_out (z + MLP(z))

The queries of Perceiver (https://arxiv.org/abs/2103.03206) and Q-Former (arXiv 2301.12597), with
two changes. A row that comes out is the attention's mean of the rows that went in plus a learned
correction, which starts at zero: so it lies where the decoder expects a token, and provenance can
say what it stands for. And each query has a place c of its own to look at first. Places follow the
R2 sequence (M. Roberts, "The unreasonable effectiveness of quasirandom sequences", 2018), so that
any first K of them are spread evenly: one set of weights serves every K up to its number of
queries, if K varies in training (Matryoshka queries, arXiv 2405.19315).
"""

# Shape legend
#   S = pictures (steps of a video), N = tokens of a picture, K = queries in use, D = width of a
#   token, F = hidden width, M = heads

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from token_reduction.base import Reducer, Stage, check_full
from token_reduction.layout import TokenLayout, TokenShape

_RATIO = 1.324717957244746  # the plastic number, x^3 = x + 1


class QueryResampler(nn.Module):
    """The weights: queries, where they look, and the attention that reads with them.

    Args:
        dim: Width of a token.
        num_queries: The largest K.
        hidden: Width of queries and keys, a multiple of `num_heads`.
        num_heads: Attention heads.
    """

    def __init__(self, dim: int, num_queries: int, hidden: int = 128, num_heads: int = 4) -> None:
        super().__init__()
        self.num_queries, self.num_heads = num_queries, num_heads
        self.queries = nn.Parameter(0.5 * torch.randn(num_queries, hidden))
        self.places = nn.Parameter(_spread_places(num_queries))
        self.log_sharpness = nn.Parameter(torch.tensor(float(num_queries)).log())
        self.norm = nn.LayerNorm(dim)
        self.query_norm = nn.LayerNorm(hidden)
        self.position_proj = nn.Linear(2, dim, bias=False)
        self.q_proj = nn.Linear(hidden, hidden, bias=False)
        self.k_proj = nn.Linear(dim, hidden, bias=False)
        self.v_proj = nn.Linear(dim, hidden, bias=False)
        self.o_proj = nn.Linear(hidden, hidden, bias=False)
        self.mlp_norm = nn.LayerNorm(hidden)
        self.mlp = nn.Sequential(
            nn.Linear(hidden, 2 * hidden), nn.GELU(), nn.Linear(2 * hidden, hidden)
        )
        self.out_proj = nn.Linear(hidden, dim, bias=False)
        nn.init.zeros_(self.out_proj.weight)

    def forward(
        self, x: Float[Tensor, "S N D"], position: Float[Tensor, "N 2"], num_kept: int
    ) -> tuple[Float[Tensor, "S K D"], Float[Tensor, "S K N"]]:
        """Read every picture with the first `num_kept` queries, in the order of their places.

        Args:
            x: Tokens, in the dtype of the weights.
            position: Where they are, (down, right) from -1 to 1; of a recording (time, 0).
            num_kept: K.

        Returns:
            The new rows, and the share of each token in them.
        """
        order = torch.argsort(self.places[:num_kept, 0].detach(), stable=True)
        places, u = self.places[order], self.queries[order]

        # 1. Attend: by content, and less the further a token is from the query's place.
        q = self.q_proj(self.query_norm(u)).unflatten(-1, (self.num_heads, -1))
        seen = self.norm(x)
        k = self.k_proj(seen + self.position_proj(position)).unflatten(-1, (self.num_heads, -1))
        v = self.v_proj(seen).unflatten(-1, (self.num_heads, -1))
        content = torch.einsum("kmf, snmf -> smkn", q, k) / q.shape[-1] ** 0.5
        distance = (places[:, None] - position[None]).square().sum(-1)  # (K, N)
        attention = (content - self.log_sharpness.exp() * distance).softmax(dim=-1)

        # 2. Update the queries.
        read = torch.einsum("smkn, snmf -> skmf", attention, v).flatten(2)
        z = u + self.o_proj(read)
        z = z + self.mlp(self.mlp_norm(z))

        # 3. The mean of what was read, corrected.
        shares = attention.mean(dim=1)
        return shares @ x + self.out_proj(z), shares


class Resampler(Reducer):
    """Leaves K tokens of an image, of each step of a video, or of a recording, if it has as many.

    The weights belong to the model: `bind` gives them. Planning works without.

    Args:
        num_queries: K, at least 1; 64 as in Flamingo (arXiv 2204.14198).

    Raises:
        ValueError: If `num_queries` is below 1.
    """

    stage: Stage = "after_projector"

    def __init__(self, num_queries: int = 64) -> None:
        super().__init__()
        if num_queries < 1:
            raise ValueError(f"Found resampler({num_queries}); expected at least 1 query.")
        self.num_queries = num_queries
        self.weights: QueryResampler | None = None

    def bind(self, weights: Mapping[str, nn.Module]) -> Reducer:
        """Take the queries from `weights`, under their name `resampler`."""
        found = weights.get("resampler")
        if isinstance(found, QueryResampler):
            self.weights = found
        return self

    def plan(self, shape: TokenShape) -> TokenShape:
        """The same grid with K tokens in every picture.

        Raises:
            ValueError: If tokens of a video were already pruned: its steps may then differ in
                length, and no count could be promised.
        """
        pictures, tokens = _pictures(shape)
        return TokenShape(
            modality=shape.modality,
            grid=shape.grid,
            num_tokens=pictures * min(self.num_queries, tokens),
        )

    def reduce(
        self, features: Float[Tensor, "tokens dim"], layout: TokenLayout
    ) -> tuple[Float[Tensor, "reduced dim"], TokenLayout]:
        """Resample every picture; a new token sits at one of as many evenly spaced cells.

        Raises:
            ValueError: If no weights were bound, or they have fewer queries.
        """
        if self.weights is None:
            raise ValueError(
                "resampler needs trained queries, but this model has none for "
                f"{layout.shape.modality}. Train them, or choose a reducer that needs no training, "
                "such as avg_pool."
            )
        if self.num_queries > self.weights.num_queries:
            raise ValueError(
                f"Found resampler({self.num_queries}), but this model has "
                f"{self.weights.num_queries} queries for {layout.shape.modality}; "
                "expected at most as many."
            )
        shape = self.plan(layout.shape)
        pictures, tokens = _pictures(layout.shape)
        num_kept = shape.num_tokens // pictures
        dtype = self.weights.queries.dtype
        position = _positions(layout, tokens).to(features.device, dtype)
        rows, shares = self.weights(
            features.to(dtype).unflatten(0, (pictures, tokens)), position, num_kept
        )

        kept = (2 * torch.arange(num_kept) + 1) * tokens // (2 * num_kept)
        first = torch.arange(pictures)[:, None] * tokens
        shares = shares.detach().float().cpu()
        picture, query, member = torch.nonzero(shares, as_tuple=True)  # what is far counts for 0
        sizes = torch.bincount(picture * num_kept + query, minlength=shape.num_tokens)
        reduced_layout = layout.merge(
            shape=shape,
            cells=layout.cells[(kept + first).flatten()],
            time_spans=layout.time_spans,
            group_ptr=torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]),
            members=picture * tokens + member,
            weights=shares[picture, query, member],
        )
        return rows.flatten(0, 1).to(features.dtype), reduced_layout


def _pictures(shape: TokenShape) -> tuple[int, int]:
    """How many pictures, and how many tokens each has; a recording counts as one."""
    if shape.modality != "video" or shape.grid[0] == 1:
        return 1, shape.num_tokens
    check_full(shape, "resampler")
    t, h, w = shape.grid
    return t, h * w


def _positions(layout: TokenLayout, tokens: int) -> Float[Tensor, "tokens 2"]:
    """Middle of each cell of the first picture, (down, right) from -1 to 1; of sound (time, 0)."""
    t, h, w = layout.shape.grid
    cells: Int[Tensor, " tokens"] = layout.cells[:tokens]
    if layout.shape.modality == "audio":
        return torch.stack([(2 * cells + 1) / t - 1, torch.zeros(tokens)], dim=1)
    place = cells % (h * w)
    return torch.stack([(2 * (place // w) + 1) / h - 1, (2 * (place % w) + 1) / w - 1], dim=1)


def _spread_places(count: int) -> Float[Tensor, "count 2"]:
    """The R2 sequence, scaled to -1 to 1: any first ones of it are spread evenly."""
    step = torch.tensor([1 / _RATIO, 1 / _RATIO**2], dtype=torch.float64)
    points = (0.5 + torch.arange(1, count + 1, dtype=torch.float64)[:, None] * step) % 1
    return (2 * points - 1).float()
