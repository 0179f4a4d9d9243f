"""Log-mel features of speech and sound, and the lengths that follow from a sample count.

    waveform (samples,)  16 kHz, mono, in [-1, 1]
      -> split_clips      clips of at most 30 s, so that memory does not grow with the recording
      -> LogMel           (frames, mel) per clip, 100 frames a second, normalised per clip
      -> audio tower      (tokens, hidden), one token per 8 frames (80 ms)

Two frame counts matter. A clip of L samples has `1 + L // 160` *physical* frames, because the
spectrogram is centred; only `L // 160` of them are *valid*: the last one sees mostly padding, is
set to zero, and makes no token of its own.
"""

from dataclasses import KW_ONLY, dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn import functional as F
from transformers.audio_utils import mel_filter_bank

SAMPLING_RATE = 16_000  # Hz
HOP_LENGTH = 160  # samples, 10 ms: one mel frame
SUBSAMPLING_FACTOR = 8  # mel frames in one token, 80 ms: 12.5 tokens a second
CLIP_SAMPLES = 480_000  # 30 s; attention inside a clip is quadratic, across clips there is none
MIN_CLIP_SAMPLES = 1_600  # 0.1 s; a shorter remainder is padded with silence

# As NeMo calls them: each mel bin by itself, or all of a clip's values together.
Normalize = Literal["per_feature", "all_features"]

# Least power that the logarithm sees, and least spread a bin is divided by.
_LOG_GUARD = 2.0**-24
_STD_GUARD = 1e-5


def split_clips(
    num_samples: int,
    *,
    clip_samples: int = CLIP_SAMPLES,
    min_clip_samples: int = MIN_CLIP_SAMPLES,
) -> list[tuple[int, int]]:
    """Split a recording into consecutive clips without overlap.

    Args:
        num_samples: Length of the recording in samples.
        clip_samples: Length of every clip but the last.
        min_clip_samples: A shorter last clip is padded with zeros to this length.

    Returns:
        `(start, length)` of each clip in samples. `start + length` of the last clip may lie
        behind the end of the recording: the difference is the padding.

    Raises:
        ValueError: If `num_samples` is negative, or `clip_samples` below 1 or `min_clip_samples`:
            clips padded beyond their own length would overlap.
    """
    if num_samples < 0:
        raise ValueError(f"A recording cannot have {num_samples} samples.")
    if clip_samples < max(1, min_clip_samples):
        raise ValueError(
            f"Found clips of {clip_samples} samples; expected at least 1, and no fewer than the "
            f"shortest clip has ({min_clip_samples}). Raise clip_samples or lower min_clip_samples."
        )
    return [
        (start, max(min(clip_samples, num_samples - start), min_clip_samples))
        for start in range(0, max(num_samples, 1), clip_samples)
    ]


def cut_clips(
    waveform: Float[Tensor, " samples"],
    *,
    clip_samples: int = CLIP_SAMPLES,
    min_clip_samples: int = MIN_CLIP_SAMPLES,
) -> list[Float[Tensor, " clip_samples"]]:
    """Cut a waveform at `split_clips`; views of it, except for a padded last clip."""
    clips = []
    for start, length in split_clips(
        len(waveform), clip_samples=clip_samples, min_clip_samples=min_clip_samples
    ):
        clip = waveform[start : start + length]
        clips.append(clip if len(clip) == length else F.pad(clip, (0, length - len(clip))))
    return clips


def subsampled_length(num_frames: int, factor: int = SUBSAMPLING_FACTOR) -> int:
    """Count the tokens that the audio tower makes of `num_frames` valid mel frames.

    Each of its strided convolutions halves the length and rounds up, hence `ceil(frames / 8)`.
    """
    return -(-num_frames // factor)


def num_audio_tokens(
    num_samples: int,
    *,
    clip_samples: int = CLIP_SAMPLES,
    min_clip_samples: int = MIN_CLIP_SAMPLES,
    hop_length: int = HOP_LENGTH,
    subsampling_factor: int = SUBSAMPLING_FACTOR,
) -> int:
    """Count the tokens of a recording, summed over its clips, without its two delimiters.

    Args:
        num_samples: Length of the recording in samples.
        clip_samples: See `split_clips`.
        min_clip_samples: See `split_clips`.
        hop_length: Samples per mel frame.
        subsampling_factor: Mel frames per token.

    Returns:
        At least 1.
    """
    clips = split_clips(num_samples, clip_samples=clip_samples, min_clip_samples=min_clip_samples)
    tokens = sum(subsampled_length(length // hop_length, subsampling_factor) for _, length in clips)
    return max(tokens, 1)


@dataclass(frozen=True, slots=True)
class LogMel:
    """Log-mel front end of Parakeet; the defaults are those of the released system.

    Steps: pre-emphasis, power spectrogram, mel filter bank, logarithm, and per clip mean 0 and
    standard deviation 1 over the valid frames.

    Attributes:
        num_mel_bins: Mel bins, evenly spaced on the Slaney scale from 0 Hz to half the rate.
        sampling_rate: Hz of the waveforms.
        hop_length: Samples between frames.
        win_length: Samples under the (symmetric Hann) window.
        n_fft: Length of the Fourier transform in samples, at least `win_length`.
        preemphasis: Share of the previous sample subtracted from each sample; 0 turns it off.
        normalize: Over what mean and deviation are taken: each mel bin (``per_feature``), or all
            of them together (``all_features``), which leaves a short clip the mean shape of its
            spectrum, in a single vowel all that there is to hear.
    """

    num_mel_bins: int = 128
    _: KW_ONLY
    sampling_rate: int = SAMPLING_RATE
    hop_length: int = HOP_LENGTH
    win_length: int = 400
    n_fft: int = 512
    preemphasis: float = 0.97
    normalize: Normalize = "per_feature"

    def __call__(self, waveform: Shaped[Tensor, " samples"]) -> Float[Tensor, "frames mel"]:
        """Compute the features of one clip; the last frame is zero (see `num_valid_frames`).

        Args:
            waveform: float32 mono samples in [-1, 1], at least one.

        Returns:
            `(1 + samples // hop_length, num_mel_bins)`.

        Raises:
            ValueError: If the waveform is empty or not of a floating type.
        """
        lengths = torch.tensor([waveform.shape[-1]], device=waveform.device)
        features, _ = self.batch(waveform.unsqueeze(0), lengths)
        return features[0]

    def batch(
        self, waveforms: Shaped[Tensor, "clips samples"], num_samples: Int[Tensor, " clips"]
    ) -> tuple[Float[Tensor, "clips frames mel"], Int[Tensor, " clips"]]:
        """Compute the features of clips of unequal length; each gets what it would get alone.

        Args:
            waveforms: float32 mono samples in [-1, 1]; what lies behind a clip's end is ignored.
            num_samples: True length of each clip in samples, at least 1.

        Returns:
            Features `(clips, 1 + samples // hop_length, num_mel_bins)`, zero behind the valid
            frames, and the number of valid frames of each clip.

        Raises:
            ValueError: If there are no samples, they are not of a floating type, or a length is
                outside `1...samples`.
        """
        self._check(waveforms, num_samples)
        inside = torch.arange(waveforms.shape[1], device=waveforms.device) < num_samples[:, None]
        waveforms = waveforms.float()
        # The first sample has no predecessor and stays as it is.
        previous = F.pad(waveforms[:, :-1], (1, 0))
        waveforms = waveforms - self.preemphasis * previous
        # After pre-emphasis, so that the end of a clip leaves no trace in its padding.
        waveforms = waveforms.masked_fill(~inside, 0.0)
        spectrum = torch.stft(
            waveforms,
            self.n_fft,
            hop_length=self.hop_length,
            win_length=self.win_length,
            window=torch.hann_window(self.win_length, periodic=False, device=waveforms.device),
            pad_mode="constant",
            return_complex=True,
        )
        # The square of the rounded magnitude, as the released features were made: in bins near
        # silence the rounding shows.
        magnitude = (spectrum.real.square() + spectrum.imag.square()).sqrt()
        power = magnitude.square()  # (clips, frequencies, frames)
        bank = _filter_bank(self.num_mel_bins, self.n_fft, self.sampling_rate)
        with torch.autocast(power.device.type, enabled=False):  # float32 in training too
            mel = bank.to(power.device) @ power  # (clips, mel, frames)
        log_mel = torch.log(mel + _LOG_GUARD).transpose(1, 2)

        num_frames = self.num_valid_frames(num_samples)
        dims = (1,) if self.normalize == "per_feature" else (1, 2)
        return _normalise(log_mel, num_frames, dims), num_frames

    def num_valid_frames(self, num_samples: Int[Tensor, " clips"]) -> Int[Tensor, " clips"]:
        """Count the frames that carry sound, one fewer than the physical ones."""
        return num_samples // self.hop_length

    def _check(self, waveforms: Tensor, num_samples: Tensor) -> None:
        samples = waveforms.shape[1]
        if samples == 0 or not waveforms.is_floating_point():
            raise ValueError(
                f"Expected at least one sample of a floating type in [-1, 1], found {samples} of "
                f"{waveforms.dtype}; divide 16-bit samples by 32768."
            )
        shortest, longest = int(num_samples.min()), int(num_samples.max())
        if shortest < 1 or longest > samples:
            raise ValueError(
                f"Clip lengths go from {shortest} to {longest} samples, but must lie within "
                f"1...{samples}, the width of the batch."
            )


def _normalise(
    log_mel: Float[Tensor, "clips frames mel"],
    num_frames: Int[Tensor, " clips"],
    dims: tuple[int, ...],
) -> Float[Tensor, "clips frames mel"]:
    """Give each clip mean 0 and unbiased deviation 1 over its valid frames along `dims`."""
    frames = torch.arange(log_mel.shape[1], device=log_mel.device)
    valid = (frames < num_frames[:, None]).unsqueeze(-1)  # (clips, frames, 1)
    # A clip of one valid frame has no spread: it becomes zero, not NaN.
    count = num_frames.clamp(min=1)[:, None, None]
    if 2 in dims:
        count = count * log_mel.shape[2]
    mean = (log_mel * valid).sum(dims, keepdim=True) / count
    centred = (log_mel - mean) * valid
    variance = centred.pow(2).sum(dims, keepdim=True) / (count - 1).clamp(min=1)
    return centred / (variance.sqrt() + _STD_GUARD)


@lru_cache(maxsize=8)
def _filter_bank(
    num_mel_bins: int, n_fft: int, sampling_rate: int
) -> Float[Tensor, "mel frequencies"]:
    bank = mel_filter_bank(
        num_frequency_bins=n_fft // 2 + 1,
        num_mel_filters=num_mel_bins,
        min_frequency=0.0,
        max_frequency=sampling_rate / 2,
        sampling_rate=sampling_rate,
        norm="slaney",
        mel_scale="slaney",
        dtype=np.float32,
    )
    return torch.from_numpy(np.ascontiguousarray(bank.T))
