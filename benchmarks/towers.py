"""Our towers and front end against transformers': same weights, in turns, in float32.

    python benchmarks/towers.py pictures    # C-RADIO: two pictures of 512 x 512
    python benchmarks/towers.py mixed       # C-RADIO: four pictures of four sizes, packed
    python benchmarks/towers.py sound       # Parakeet: 30 seconds
    python benchmarks/towers.py log-mel     # the spectrogram of 60 seconds, from samples

Widths are those of Nemotron 3 Nano Omni, with 4 of the layers (`--layers`). Sides, allocator
settings and limits are those of `backbone.py`; `log-mel` has no limit.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from typing import Any

import torch
from backbone import report, three_sides
from backbone_sides import alternate, machine, ratio
from torch import Tensor, nn
from transformers import ParakeetFeatureExtractor
from transformers.models.parakeet.modeling_parakeet import ParakeetEncoder
from transformers.models.radio.modeling_radio import RadioModel

from encoders import LogMel, ParakeetTower, RadioTower
from omni.backbone.products import use_fast_products
from omni.presets import nano_omni_30b_a3b

SAMPLE_RATE = 16_000  # Hz
GRIDS = {"pictures": [(32, 32)] * 2, "mixed": [(32, 32), (16, 40), (24, 24), (44, 20)]}
SOUND_FRAMES = 3000  # 30 seconds


def fast(tower: nn.Module) -> nn.Module:
    """As in `OmniModel`."""
    use_fast_products(tower)
    return tower


def around(weights: dict[str, Tensor], model: nn.Module) -> nn.Module:
    """A model that shares the given weights."""
    model.load_state_dict(weights, assign=True)
    return model.eval().requires_grad_(False)


def pictures(options: argparse.Namespace) -> dict[str, Any]:
    """C-RADIO over patch rows."""
    config = nano_omni_30b_a3b().vision_config
    config.num_hidden_layers = options.layers
    grids = torch.tensor(GRIDS[options.what])
    rows = torch.randn(int(grids.prod(-1).sum()), config.patch_dim)

    def theirs() -> nn.Module:
        tower = RadioModel(config)
        tower.make_preprocessor_external()
        return tower

    weights = theirs().state_dict()

    def our_work() -> Callable[[], None]:
        tower = fast(around(weights, RadioTower(config)))
        return torch.no_grad()(lambda: discard(tower.encode_images(rows, grids)))

    def their_work() -> Callable[[], None]:
        tower = around(weights, theirs())
        return torch.no_grad()(lambda: discard(tower(rows, image_grid_hw=grids)))

    attended = sum((int(h) * int(w)) ** 2 for h, w in grids) * config.hidden_size * options.layers
    products = matrices(weights, "encoder") * len(rows) + 2 * attended
    return compare(our_work, their_work, products, options)


def sound(options: argparse.Namespace) -> dict[str, Any]:
    """Parakeet over a spectrogram."""
    config = nano_omni_30b_a3b().audio_config
    config.num_hidden_layers = options.layers
    features = torch.randn(1, SOUND_FRAMES, config.num_mel_bins)
    weights = ParakeetEncoder(config).state_dict()

    def our_work() -> Callable[[], None]:
        tower = fast(around(weights, ParakeetTower(config)))
        lengths = torch.tensor([SOUND_FRAMES])
        return torch.no_grad()(lambda: discard(tower.encode_clip(features, lengths)))

    def their_work() -> Callable[[], None]:
        tower = around(weights, ParakeetEncoder(config))
        return torch.no_grad()(lambda: discard(tower(features)))

    tokens = SOUND_FRAMES // config.subsampling_factor
    return compare(our_work, their_work, matrices(weights, "layers") * tokens, options)


def log_mel(options: argparse.Namespace) -> dict[str, Any]:
    """The spectrogram that Parakeet reads."""
    samples = torch.randn(60 * SAMPLE_RATE) * 0.1
    bins = nano_omni_30b_a3b().audio_config.num_mel_bins

    def our_work() -> Callable[[], None]:
        front_end = LogMel(bins)
        return lambda: discard(front_end(samples))

    def their_work() -> Callable[[], None]:
        extractor = ParakeetFeatureExtractor(feature_size=bins)
        given = samples.numpy()
        return lambda: discard(extractor(given, sampling_rate=SAMPLE_RATE, return_tensors="pt"))

    sides = three_sides(our_work, their_work, options.threads)
    alternate(list(sides), options)
    for side in sides:
        side.close()
    return {
        "ratio": round(ratio(sides[2], sides[0]), 3),
        "ratio_same_allocator": round(ratio(sides[1], sides[0]), 3),
        "seconds": {side.name: round(statistics.median(side.seconds), 5) for side in sides},
    }


def compare(
    ours: Callable[[], Any], theirs: Callable[[], Any], products: float, options: argparse.Namespace
) -> dict[str, Any]:
    """Run the sides in turns; `products` counts multiplications."""
    sides = three_sides(ours, theirs, options.threads)
    limits = alternate(list(sides), options, ("gemm",))
    return report(sides, 2 * products / limits["gemm"], limits)


def matrices(weights: dict[str, Tensor], part: str) -> float:
    """Numbers in the matrices of a part."""
    return sum(w.numel() for name, w in weights.items() if part in name and w.ndim == 2)


def discard(_: object) -> None:
    """Nothing is kept of a result."""


WORK = {"pictures": pictures, "mixed": pictures, "sound": sound, "log-mel": log_mel}


def main() -> None:
    """Measure and print the JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=WORK)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--warmup", type=int, default=1, help="runs before the first that counts")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)  # before the fork: OpenMP's threads do not survive it
    torch.manual_seed(0)
    result = {"benchmark": f"towers-{options.what}", "layers": options.layers}
    result |= WORK[options.what](options)
    print(json.dumps(result | {"machine": machine(options.threads)}))


if __name__ == "__main__":
    main()
