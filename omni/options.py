"""What one request may want done with its media, in one object that every caller passes on."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import Any

import numpy as np

from omni.budget import parse_bytes
from omni.errors import RequestError


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaOptions:
    """What one request wants done with its media; None means the checkpoint's default.

    With a budget, what is left at its default is lowered until the request fits, by the policy of
    `omni.budget`; what is set here stays as it is.

    Attributes:
        fps: Frames sampled per second of video.
        num_frames: Most frames of one video.
        dpi: Dots per inch at which pages are rendered.
        image_tokens: Most tokens of one picture or page, before reduction; larger ones are made
            smaller, or cut into fewer tiles. The smallest size of the model is kept.
        audio_in_video: Listen to a video's sound track too.
        reduction: Spec string per modality, such as ``{"video": "evs(0.7)"}``.
        max_tokens: Budget of the request in tokens, its answer included.
        max_memory: Budget of its working memory (`omni.footprint`) in bytes, or as ``"8GB"``.
    """

    fps: float | None = None
    num_frames: int | None = None
    dpi: int | None = None
    image_tokens: int | None = None
    audio_in_video: bool = False
    reduction: Mapping[str, str] = field(default_factory=dict)
    max_tokens: int | None = None
    max_memory: int | str | None = None

    def __post_init__(self) -> None:
        for name in ("max_tokens", "image_tokens", "num_frames", "dpi"):
            value = getattr(self, name)
            is_whole = isinstance(value, Integral) and not isinstance(value, bool)
            if value is not None and not (is_whole or (name == "dpi" and isinstance(value, float))):
                raise RequestError(f"{name} is {value!r}; expected a whole number.")
            if value is not None and value < 1:
                raise RequestError(f"{name} is {value}; expected at least 1.")
        if self.fps is not None and not (self.fps > 0 and math.isfinite(self.fps)):
            raise RequestError(f"fps is {self.fps}; expected more than 0.")
        if self.max_memory is not None:
            parse_bytes(self.max_memory)
        if not isinstance(self.reduction, Mapping):
            raise RequestError(
                f"reduction is {self.reduction!r:.80}; expected a spec by modality, such as "
                '{"video": "evs(0.7)"}.'
            )
        for modality, spec in self.reduction.items():
            if not isinstance(spec, str) or not spec.strip():
                raise RequestError(
                    f"The reduction of {modality} is {spec!r:.80}; expected a spec such as "
                    "'evs(0.7)', or 'identity' for none."
                )
            if modality not in ("image", "video", "audio"):
                raise RequestError(
                    f"Reduction was given for {modality!r}; expected image, video or audio."
                )
        use_python_numbers(self)

    @property
    def has_budget(self) -> bool:
        """Whether the request is to be made to fit a budget."""
        return self.max_tokens is not None or self.max_memory is not None

    def with_defaults(self) -> "MediaOptions":
        """The same budget, as if the request had set nothing that a budget may lower."""
        return replace(self, fps=None, num_frames=None, dpi=None, image_tokens=None, reduction={})

    @property
    def max_memory_bytes(self) -> int | None:
        """The memory budget in bytes."""
        return None if self.max_memory is None else parse_bytes(self.max_memory)


def use_python_numbers(options: Any) -> None:
    """Put Python's numbers in the place of NumPy's and others, which JSON does not know.

    Args:
        options: A frozen dataclass with slots, whose values are checked.
    """
    for name in options.__slots__:
        value = getattr(options, name)
        if isinstance(value, bool | np.bool_):
            object.__setattr__(options, name, bool(value))
        elif isinstance(value, Integral):
            object.__setattr__(options, name, int(value))
        elif isinstance(value, Real):
            object.__setattr__(options, name, float(value))


def take(kind: type[Any], options: dict[str, Any]) -> Any:
    """Build an options object from those of ``options`` that it knows, and remove them there."""
    own = {name: options.pop(name) for name in list(options) if name in kind.__slots__}
    return kind(**own)
