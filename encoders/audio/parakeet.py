"""Parakeet audio tower: transformers' FastConformer encoder, one clip or many at a time.

log-mel (clips, frames, mel) -> 3 strided convolutions -> (clips, ceil(frames/8), hidden)
                             -> conformer blocks       -> same shape
"""

import copy

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import ParakeetEncoderConfig
from transformers.models.parakeet.modeling_parakeet import ParakeetEncoder

# Everything random that the encoder does in training mode.
_RANDOM_RATES = (
    "dropout",
    "dropout_positions",
    "attention_dropout",
    "activation_dropout",
    "layerdrop",
)


class ParakeetTower(ParakeetEncoder):
    """Parakeet over clips of known length; parameter names are those of `ParakeetEncoder`."""

    def encode_clip(
        self, features: Float[Tensor, "clips frames mel"], lengths: Int[Tensor, " clips"]
    ) -> Float[Tensor, "clips tokens hidden"]:
        """Encode clips; each gets what it would get alone, whatever it is padded with.

        Args:
            features: Log-mel frames; what lies behind a clip's valid frames is ignored.
            lengths: Valid frames of each clip, at least 1 (`samples // hop_length`).

        Returns:
            `(clips, subsampled_length(max(lengths)), hidden)`. The first
            `subsampled_length(lengths[i])` rows belong to clip `i`; the rest are zero.

        Raises:
            ValueError: If a length is outside `1...frames` or the mel bins are not the tower's.
        """
        clips, frames, mel = features.shape
        if mel != self.config.num_mel_bins:
            raise ValueError(
                f"The features have {mel} mel bins, but this tower takes "
                f"{self.config.num_mel_bins}; build LogMel with that number."
            )
        if not clips:
            return features.new_zeros(0, 0, self.config.hidden_size, dtype=self.dtype)
        shortest, longest = int(lengths.min()), int(lengths.max())
        if shortest < 1 or longest > frames:
            raise ValueError(
                f"Clip lengths go from {shortest} to {longest} frames, but must lie within "
                f"1...{frames}, the width of the batch."
            )
        # Without the last, invalid frame no clip of the batch makes a token of pure padding.
        features = features[:, :longest].to(self.dtype)
        if shortest == longest:
            return self(features).last_hidden_state

        lengths = lengths.to(features.device)
        valid = torch.arange(longest, device=features.device) < lengths[:, None]
        features = features.masked_fill(~valid[..., None], 0.0)
        output = self(features, attention_mask=valid)
        return output.last_hidden_state * output.attention_mask[..., None]


def deterministic_config(config: ParakeetEncoderConfig) -> ParakeetEncoderConfig:
    """Copy a config with every dropout and layerdrop at zero.

    Released configs leave these fields out, and their defaults of 0.1 would make a tower random
    as soon as the model around it is trained.
    """
    config = copy.deepcopy(config)
    for name in _RANDOM_RATES:
        setattr(config, name, 0.0)
    return config


@torch.no_grad()
def init_small_audio_tower(tower: nn.Module) -> None:
    """Initialise a small tower to be trained from scratch: fan-in scaling in place.

    Transformers draws every weight with deviation 0.02, which suits a width of 1024. In a
    narrow tower, and in the nine weights of a depthwise kernel, it lets the signal die out
    before the first block: such a tower does not learn. Normalisation layers are left alone.

    Args:
        tower: A `ParakeetTower`, or a module that holds one and no other layers to keep.
    """
    for module in tower.modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
            # Dense 2-D convolutions feed a ReLU, which halves the power; depthwise ones do not.
            if isinstance(module, nn.Conv2d) and module.groups == 1:
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            else:
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
