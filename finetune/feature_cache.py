"""What the frozen towers gave for each medium, kept on disk.

The key of a window is a hash of the very values that the tower would read (decoded, resized and
normalised pixels, or the log-mel spectrogram) and of the tower's weights: whatever setting, file or
library changes these gives another key, and nothing else does.
"""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from omni.errors import RequestError
from omni.inputs import MediaItem, OmniInputs, Window
from omni.model import OmniModel
from omni.towers import merging_rate, needs_attention, run_tower

VERSION = 1


class FeatureCache:
    """Replaces the windows of media by their hidden states, from disk where they are there.

    Args:
        folder: Made if missing; several runs and models may share it.
        model: Its towers must be frozen.

    Raises:
        RequestError: A tower is trained.
    """

    def __init__(self, folder: Path, model: OmniModel) -> None:
        towers = [tower for tower in (model.vision_model, model.audio_tower) if tower is not None]
        if any(p.requires_grad for tower in towers for p in tower.parameters()):
            raise RequestError(
                "Features cannot be cached while the towers are trained: they change with every "
                "step. Leave cache_features out, or choose a preset without towers."
            )
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.model = folder, model
        self.hits = self.misses = 0
        digest = hashlib.sha256(f"{VERSION} {model.dtype}".encode())
        for tower in towers:
            digest.update(json.dumps(tower.config.to_dict(), sort_keys=True, default=str).encode())
            for name, value in tower.state_dict().items():
                digest.update(name.encode())
                digest.update(_bytes_of(value))
        self.tower_digest = digest.digest()

    def __call__(self, inputs: OmniInputs) -> OmniInputs:
        """The same row with hidden states in place of pixels and spectrograms.

        Args:
            inputs: Its windows are read once.

        Raises:
            RequestError: A reduction asks the tower itself.
        """
        return replace(inputs, media=[self._cached(item) for item in inputs.media])

    def _cached(self, item: MediaItem) -> MediaItem:
        if needs_attention(item):
            raise RequestError(
                f"{item.name}: {item.reduction!r} asks what the tower attends to, which is not "
                "cached. Leave cache_features out, or choose another reduction."
            )
        return replace(item, windows=[self._hidden(item, window) for window in item.windows])

    def _hidden(self, item: MediaItem, window: Window) -> Window:
        facts = (item.modality, item.grid[1:], *window[1:], merging_rate(item), window.rows.shape)
        digest = hashlib.sha256(self.tower_digest + repr(facts).encode())
        digest.update(_bytes_of(window.rows))
        key = digest.hexdigest()
        path = self.folder / key[:2] / f"{key}.safetensors"
        if path.exists():
            self.hits += 1
            hidden = load_file(path)["hidden"]
        else:
            self.misses += 1
            with torch.no_grad():
                [hidden], _ = run_tower(self.model, [item], [(0, window)])
            hidden = hidden.detach().cpu().contiguous()
            path.parent.mkdir(exist_ok=True)
            new = path.with_suffix(f".new{id(self)}")
            save_file({"hidden": hidden}, new)
            new.replace(path)
        return window._replace(rows=hidden, is_hidden=True)


def _bytes_of(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
