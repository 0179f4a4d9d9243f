"""A model of half a million parameters that learns the synthetic puzzles from nothing.

It has every part of the released architecture but the experts, so that reducers meet the product's
path. It is trained in two stages, in minutes:

1. `train_sight`: tower and projector learn to see digits, token by token, on sheets full of them.
2. `train_base`: everything learns to answer; then towers and projectors are frozen, and the decoder
   goes on with media reduced in all ways that need no training. So no reducer is at an advantage
   because the model knows only its kind of prompt, and the towers, as in any released model, have
   not learned to spread what matters over all tokens.

In both a linear head says what each token shows; it is thrown away afterwards.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import NemotronHConfig, ParakeetEncoderConfig, RadioConfig

from encoders import deterministic_config, init_small_audio_tower
from finetune.bench.synthetic import (
    FPS,
    NOTHING,
    TASKS,
    UNSURE,
    Puzzle,
    Puzzles,
    draw_sheet,
)
from finetune.tiny.joint_pool import pack_rows
from finetune.tiny.optimizers import build_optimizers, set_rates
from finetune.tiny.tokenizer import SPECIAL_TOKENS, build_tokenizer
from finetune.tiny.vision_tower import build_tower
from omni.config import OmniConfig
from omni.inputs import Modality
from omni.media import load_media
from omni.model import OmniModel
from omni.options import MediaOptions
from omni.planning import MediaPlanner
from omni.processor import OmniProcessor
from omni.settings import ProcessorSettings

Report = Callable[[int, str], None]

# What needs no training, by modality: rivals of a trained scorer, and the base model's diet.
TRAINING_FREE: dict[Modality, tuple[str, ...]] = {
    "video": ("evs({rate})", "evs({rate}, floor=2)", "temporal_merge({rate})"),
    "audio": ("silence({rate})", "adjacent_merge({rate})"),
    "image": ("divprune({rate})", "prune_merge({rate})", "merge({rate})"),
}
MAX_RATE = 0.85
_ENCODING = ("vision_model", "audio_tower", "multi_modal_projector", "embed_audio")
PER_STEP = {"clip": 6, "recording": 5, "picture": 5}  # puzzles in a step
WIDTH = 64


def toy_config(vocab_size: int) -> OmniConfig:
    """Return the config: width 64, patches of 8 pixels, towers of 3 and 2 layers, a decoder of 6.

    Args:
        vocab_size: Tokens of the tokenizer.
    """
    ids = {token: i for i, token in SPECIAL_TOKENS.items()}
    text = NemotronHConfig(
        vocab_size=vocab_size,
        hidden_size=WIDTH,
        hybrid_override_pattern="M*-M*-",
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=128,
        mamba_num_heads=4,
        mamba_head_dim=32,
        ssm_state_size=16,
        n_groups=1,
        conv_kernel=4,
        chunk_size=64,
        initializer_range=WIDTH**-0.5,
        max_position_embeddings=4096,
        bos_token_id=ids["<s>"],
        eos_token_id=ids["<|im_end|>"],
        pad_token_id=ids["<unk>"],
    )
    vision = RadioConfig(
        hidden_size=WIDTH,
        num_hidden_layers=3,
        num_attention_heads=2,
        mlp_ratio=3.0,
        patch_size=8,
        max_img_size=128,
        num_cls_tokens=1,
        num_registers=1,
        summary_idxs=[0],
        video_temporal_patch_size=2,
        layerscale_value=1.0,
    )
    audio = deterministic_config(
        ParakeetEncoderConfig(
            hidden_size=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=128,
            num_mel_bins=40,
            subsampling_factor=8,
            subsampling_conv_channels=24,
            conv_kernel_size=5,
            convolution_bias=False,
            attention_bias=False,
            scale_input=False,
        )
    )
    audio.projection_hidden_size = 2 * WIDTH
    audio.projection_bias = False
    return OmniConfig(
        text_config=text,
        vision_config=vision,
        audio_config=audio,
        projector_hidden_size=2 * WIDTH,
        min_num_patches=16,
        max_num_patches=512,
        video_target_num_patches=60,
        video_token_id=ids["<image>"],
        image_token_id=ids["<image>"],
        audio_token_id=ids["<so_embedding>"],
        img_start_token_id=ids["<img>"],
        img_end_token_id=ids["</img>"],
        audio_start_token_id=ids["<so_start>"],
        audio_end_token_id=ids["<so_end>"],
    )


def build_toy(seed: int = 0) -> tuple[OmniModel, OmniProcessor]:
    """Build the untrained model with its processor.

    Args:
        seed: Seed of the weights.
    """
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    model = OmniModel(toy_config(len(tokenizer)))
    tower = build_tower(model.config.vision_config)
    model.vision_model.load_state_dict(tower.state_dict())
    assert model.audio_tower is not None
    init_small_audio_tower(model.audio_tower)
    settings = ProcessorSettings(fps=FPS, num_frames=16, max_model_len=4096)
    return model.eval(), OmniProcessor(tokenizer, model.config, settings)


def train_sight(
    model: OmniModel,
    processor: OmniProcessor,
    *,
    steps: int,
    learning_rate: float = 4e-3,
    seed: int = 1,
    report: Report = lambda step, text: None,
) -> None:
    """Teach tower and projector to see digits, on 12 pages and 20 frames of them a step.

    Args:
        model: Trained in place.
        processor: Of the model.
        steps: Optimiser steps.
        learning_rate: Muon's; AdamW's is half of it.
        seed: Seed of sheets.
        report: Called every 25 steps.
    """
    torch.manual_seed(seed)
    kinds: dict[Modality, int] = {"image": 12, "video": 20}
    heads = nn.ModuleDict({kind: nn.Linear(WIDTH, NOTHING + 1) for kind in kinds})
    seeing = nn.ModuleList([model.vision_model, model.multi_modal_projector, heads])
    inner = [*model.vision_model.encoder.parameters(), *model.multi_modal_projector.parameters()]
    optimizers = build_optimizers(seeing.parameters(), inner, weight_decay=0.02)
    model.train()
    for step in range(steps):
        rng = np.random.default_rng([seed, 3, step])
        loss = torch.zeros(())
        right: dict[str, str] = {}
        for kind, count in kinds.items():
            sheets = [draw_sheet(kind, rng) for _ in range(count)]
            labels = torch.from_numpy(np.concatenate([labels for _, labels in sheets]))
            options: dict[str, Any] = {"fps": FPS} if kind == "video" else {}
            media: list[Any] = [load_media(pixels, **options) for pixels, _ in sheets]
            planner = MediaPlanner(
                media, model.config, processor.settings, MediaOptions(), max_tokens=10**6
            )
            encoded = model.encode([plan.items[0] for plan in planner.plan()])
            scores = heads[kind](torch.cat([features for features, _ in encoded]))
            loss = loss + _token_loss(scores, labels, of_nothing=0.3)
            is_digit = (labels >= 0) & (labels < NOTHING)
            hits = (scores.argmax(-1) == labels)[is_digit]
            right[kind] = f"{hits.float().mean():.2f}"
        share = min((step + 1) / 30, 1.0) * max(0.05, min(1.0, 2 * (1 - step / steps)))
        _step(seeing, optimizers, loss, muon=share * learning_rate, adamw=share * learning_rate / 2)
        if (step + 1) % 25 == 0:
            report(step + 1, f"loss {loss.item():.3f}, tokens named {right}")
    model.eval()


def train_base(
    model: OmniModel,
    processor: OmniProcessor,
    *,
    steps: int,
    learning_rate: float = 4e-3,
    seed: int = 2,
    report: Report = lambda step, text: None,
) -> None:
    """Teach the model to answer; after three fifths of the steps only its decoder, reduced media.

    Args:
        model: After `train_sight`; trained in place.
        processor: Of the model.
        steps: Optimiser steps.
        learning_rate: Muon's; AdamW's is 0.7 of it.
        seed: Seed of puzzles and reductions.
        report: Called every 25 steps.
    """
    torch.manual_seed(seed)
    heads = nn.ModuleDict({task: nn.Linear(WIDTH, NOTHING + 1) for task in TASKS})
    everything = nn.ModuleList([model, heads])
    assert model.audio_tower is not None
    inner = [
        *model.language_model.model.layers.parameters(),
        *model.vision_model.encoder.parameters(),
        *model.audio_tower.layers.parameters(),
    ]
    optimizers = build_optimizers(everything.parameters(), inner, weight_decay=0.02)
    tasks = [task for task, count in PER_STEP.items() for _ in range(count)]
    count = len(tasks)
    puzzles = Puzzles(tuple(tasks), steps * count, seed)
    right: dict[str, list[bool]] = {task: [] for task in TASKS}
    model.train()
    for step in range(steps):
        rng = np.random.default_rng([seed, 3, step])
        is_whole = step < 3 * steps // 5
        if step == 3 * steps // 5:
            for part in _ENCODING:
                getattr(model, part).requires_grad_(False).eval()
        batch = [puzzles[step * count + i] for i in range(count)]
        specs = ["identity" if is_whole else random_spec(rng, puzzle) for puzzle in batch]
        loss = _answer_loss(model, processor, heads, batch, specs, right)
        share = min((step + 1) / 30, 1.0) * max(0.02, min(1.0, 3 * (1 - step / steps)))
        rates = {"muon": share * learning_rate, "adamw": 0.7 * share * learning_rate}
        _step(everything, optimizers, loss, **rates)
        if (step + 1) % 25 == 0:
            shares = {task: f"{np.mean(hits[-150:]):.2f}" for task, hits in right.items()}
            report(step + 1, f"loss {loss.item():.3f}, right of the last 150: {shares}")
    model.eval().requires_grad_(True)


def random_spec(rng: np.random.Generator, puzzle: Puzzle) -> str:
    """Draw how a puzzle is reduced in training: not at all, blindly, or by a rival.

    Args:
        rng: Source of randomness.
        puzzle: Its task decides what there is.
    """
    if rng.random() < 0.25:
        return "identity"
    blind = ("uniform({rate})", "random({rate}, seed={seed})", "random({rate}, seed={seed})")
    specs = (*TRAINING_FREE[TASKS[puzzle.task]], *blind)
    rate, seed = round(float(rng.uniform(0, MAX_RATE)), 3), int(rng.integers(10_000))
    return specs[int(rng.integers(len(specs)))].format(rate=rate, seed=seed)


def _answer_loss(
    model: OmniModel,
    processor: OmniProcessor,
    heads: nn.ModuleDict,
    batch: list[Puzzle],
    specs: list[str],
    right: dict[str, list[bool]],
) -> Tensor:
    """Loss of the answers, and half of that of naming what each kept token shows."""
    rows = []
    for puzzle, spec in zip(batch, specs, strict=True):
        options = MediaOptions(reduction={TASKS[puzzle.task]: spec})
        row = processor(puzzle.conversation, options=options, with_labels=True)
        [item] = row.media
        item = replace(item, facts={**item.facts, "puzzle": puzzle})  # packing keeps it
        rows.append(replace(row, media=[item]))
    packed = pack_rows(rows, processor.ids.pad)
    encoded = model.encode(packed.media)
    embeddings, _ = model.place(packed.input_ids, packed.media, encoded, packed.attention_mask)
    out = model(
        inputs_embeds=embeddings,
        attention_mask=packed.attention_mask,
        segment_ids=packed.segment_ids,
        labels=packed.labels,
    )
    loss = out.loss
    assert packed.labels is not None
    targets = packed.labels[:, 1:]
    is_right = out.logits[:, :-1].argmax(-1) == targets
    shown: dict[str, list[tuple[Tensor, Tensor]]] = {task: [] for task in TASKS}
    for item, (features, layout) in zip(packed.media, encoded, strict=True):
        puzzle = item.facts["puzzle"]
        first = item.start + int((targets[item.row, item.start :] >= 0).nonzero()[0])
        right[puzzle.task].append(bool(is_right[item.row, first]))
        classes = torch.from_numpy(puzzle.classes(layout.shape.grid))
        shown[puzzle.task].append((features, classes[layout.cells]))
    for task, tokens in shown.items():
        features, labels = (torch.cat(part) for part in zip(*tokens, strict=True))
        loss = loss + 0.5 * _token_loss(heads[task](features), labels, of_nothing=0.15)
    return loss


def _token_loss(scores: Tensor, labels: Tensor, of_nothing: float) -> Tensor:
    weights = torch.tensor([1.0] * NOTHING + [of_nothing])
    return F.cross_entropy(scores, labels, weight=weights, ignore_index=UNSURE)


def _step(
    trained: nn.Module,
    optimizers: tuple[torch.optim.Optimizer, ...],
    loss: Tensor,
    *,
    muon: float,
    adamw: float,
) -> None:
    set_rates(optimizers, muon=muon, adamw=adamw)
    trained.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
