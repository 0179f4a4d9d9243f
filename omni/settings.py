"""How media are turned into encoder inputs, where the model's config leaves a choice."""

import json
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from pathlib import Path

from omni.errors import ConfigError

FILE_NAME = "processor_config.json"

# Keys of published processor files that are fixed by the model's config or by our encoders.
_KNOWN_ELSEWHERE = frozenset(
    {
        "processor_class",
        "auto_map",
        "audio_sampling_rate",
        "audio_subsampling_factor",
        "audio_hop_length",
        "audio_subsampling_conv_kernel_size",
        "audio_subsampling_conv_stride",
        "video_temporal_patch_dim",
        "image_processor",
        "video_processor",
        "feature_extractor",
        "image_processor_type",
        "video_processor_type",
        "feature_extractor_type",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessorSettings:
    """Sampling and size defaults of a checkpoint; a request may override the first three.

    Attributes:
        fps: Frames sampled per second of video.
        num_frames: Most frames of one video; longer videos are sampled more sparsely.
        document_dpi: Dots per inch at which pages are rendered.
        max_model_len: Longest request in tokens, answer included.
        frames_per_window: Video frames decoded, resized and encoded at a time.
    """

    fps: float = 1.0
    num_frames: int = 512
    document_dpi: int = 144
    max_model_len: int = 131_072
    frames_per_window: int = 64

    @classmethod
    def load(cls, directory: Path) -> "ProcessorSettings":
        """Read ``processor_config.json``; a checkpoint without one gets the defaults.

        Raises:
            ConfigError: A key that nobody knows, or a value that is no positive number.
        """
        path = directory / FILE_NAME
        if not path.exists():
            return cls()
        try:
            values = json.loads(path.read_text())
        except ValueError as error:
            raise ConfigError(f"{path} is no JSON ({error}); copy or download it again.") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{path} holds a {type(values).__name__}; expected an object.")
        own = {field.name for field in fields(cls)}
        for name in values:
            if name not in own | _KNOWN_ELSEWHERE:
                near = get_close_matches(name, own, n=1, cutoff=0.0)[0]
                raise ConfigError(f"{path.name} has unknown key {name!r}; did you mean {near!r}?")
        return cls(**{name: value for name, value in values.items() if name in own})

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise ConfigError(f"{name} is {value!r}; expected a positive number.")
            if isinstance(value, float) and name != "fps":
                raise ConfigError(f"{name} is {value!r}; expected a whole number.")

    def save(self, directory: Path) -> None:
        """Write ``processor_config.json``."""
        text = json.dumps(asdict(self), indent=2) + "\n"
        (directory / FILE_NAME).write_text(text)
