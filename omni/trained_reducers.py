"""Reducers with weights of their own: what a model holds of them, and how it gets new ones."""

import torch
from torch import nn

from omni.config import OmniConfig
from omni.errors import RequestError
from omni.inputs import MediaItem, Modality
from token_reduction import QueryResampler, Reducer, TokenScorer, build


class TrainedReducers:
    """The part of `OmniModel` that holds token scorers and resamplers, one per modality at most.

    Their weights are saved with the model's, under `token_scorers` and `resamplers`; the config
    says for which modalities there are some, and what they were trained for.
    """

    config: OmniConfig
    device: torch.device
    dtype: torch.dtype
    token_scorers: nn.ModuleDict
    resamplers: nn.ModuleDict

    def hold_trained_reducers(self, config: OmniConfig) -> None:
        """Make the reducers that the config names, for weights to be loaded into."""
        hidden = config.text_config.hidden_size
        self.token_scorers = nn.ModuleDict()
        for modality in config.token_scorers:
            self.token_scorers[modality] = TokenScorer(hidden)
        self.resamplers = nn.ModuleDict()
        for modality, (_, most) in config.resamplers.items():
            self.resamplers[modality] = QueryResampler(hidden, most)

    def build_reducer(self, item: MediaItem) -> Reducer:
        """What reduces an item's projected tokens, with this model's trained weights."""
        weights: dict[str, nn.Module] = {}
        if item.modality in self.token_scorers:
            weights["scorer"] = self.token_scorers[item.modality]
        if item.modality in self.resamplers:
            weights["resampler"] = self.resamplers[item.modality]
        return build(item.reduction).part("after_projector").bind(weights)

    def add_token_scorer(self, modality: Modality, rates: tuple[float, float]) -> TokenScorer:
        """Give the model an untrained scorer for the reducer `learned`; one that exists is kept.

        Args:
            modality: What it will score.
            rates: Lowest and highest rate that it will be trained at; saved with the checkpoint.
        """
        as_floats = [float(rate) for rate in rates]
        self.config.token_scorers = {**self.config.token_scorers, modality: as_floats}
        if modality not in self.token_scorers:
            new = TokenScorer(self.config.text_config.hidden_size)
            self.token_scorers[modality] = new.to(self.device, self.dtype)
        scorer = self.token_scorers[modality]
        assert isinstance(scorer, TokenScorer)
        return scorer

    def add_resampler(self, modality: Modality, queries: tuple[int, int]) -> QueryResampler:
        """Give the model untrained queries for the reducer `resampler`; those that exist are kept.

        Args:
            modality: What they will read.
            queries: Fewest and most that they will be trained with; saved with the checkpoint.

        Raises:
            RequestError: It has fewer or more queries already.
        """
        if modality not in self.resamplers:
            new = QueryResampler(self.config.text_config.hidden_size, queries[1])
            self.resamplers[modality] = new.to(self.device, self.dtype)
        resampler = self.resamplers[modality]
        assert isinstance(resampler, QueryResampler)
        if resampler.num_queries != queries[1]:
            raise RequestError(
                f"The model has {resampler.num_queries} queries for {modality}, but {queries[1]} "
                "are asked for. Train those it has, or start from a checkpoint without."
            )
        self.config.resamplers = {**self.config.resamplers, modality: list(queries)}
        return resampler
