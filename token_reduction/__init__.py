"""Fewer tokens from the same media: reducers for image, video and audio features.

    reducer = token_reduction.build("pixel_shuffle(0.5)|evs(0.7)")
    reducer.plan(TokenShape.full("video", (8, 24, 42))).num_tokens     # before anything runs
    features, layout = reducer(features, TokenLayout.full("video", (8, 24, 42)))

A `rate` is always the fraction of tokens that is removed.
"""

from token_reduction.adjacent_merge import AdjacentMerge
from token_reduction.avg_pool import AvgPool
from token_reduction.base import STAGES, Chain, Reducer, ReductionStream, Stage
from token_reduction.baselines import Random, Uniform
from token_reduction.density_cluster import DensityCluster
from token_reduction.divprune import DivPrune
from token_reduction.evs import Evs, evs_keep_mask, evs_num_kept
from token_reduction.identity import Identity
from token_reduction.keyframes import Keyframes
from token_reduction.layout import Grid, Modality, TimeSpans, TokenLayout, TokenShape
from token_reduction.learned import Learned, TokenScorer
from token_reduction.matching import Match, bipartite_match
from token_reduction.merge import Merge
from token_reduction.pixel_shuffle import PixelShuffle
from token_reduction.prune_merge import ClsPruneMerge, PruneMerge
from token_reduction.resampler import QueryResampler, Resampler
from token_reduction.silence import Silence
from token_reduction.spec import REDUCERS, ReducerCall, build, parse
from token_reduction.stack import Stack
from token_reduction.temporal_merge import TemporalMerge
from token_reduction.tome import Tome
from token_reduction.tubelet import Tubelet

__all__ = [
    "REDUCERS",
    "STAGES",
    "AdjacentMerge",
    "AvgPool",
    "Chain",
    "ClsPruneMerge",
    "DensityCluster",
    "DivPrune",
    "Evs",
    "Grid",
    "Identity",
    "Keyframes",
    "Learned",
    "Match",
    "Merge",
    "Modality",
    "PixelShuffle",
    "PruneMerge",
    "QueryResampler",
    "Random",
    "Reducer",
    "ReducerCall",
    "ReductionStream",
    "Resampler",
    "Silence",
    "Stack",
    "Stage",
    "TemporalMerge",
    "TimeSpans",
    "TokenLayout",
    "TokenScorer",
    "TokenShape",
    "Tome",
    "Tubelet",
    "Uniform",
    "bipartite_match",
    "build",
    "evs_keep_mask",
    "evs_num_kept",
    "parse",
]
