"""Train the audio tower of `omni-tiny` with direct heads.

    omni finetune --recipe omni-tiny-2

Writes `audio_tower.safetensors` (names of transformers' `ParakeetEncoder`),
`heads.safetensors`, `metrics.json` and a line of figures per evaluation in `metrics.jsonl`.
The weights are a running average of those that are trained, and the figures are of this average.
A stopped run goes on from its last checkpoint with `--resume`. One core is enough.

The data costs little because augmented examples wait in a pool in memory: each step takes
its batch from there and replaces a fraction of it by new ones.
"""

import argparse
import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from finetune.tiny.audio_data import (
    DIGITS,
    LABELS,
    SILENCE,
    Clip,
    load_clips,
)
from finetune.tiny.audio_pool import Example, ExamplePool, fixed_sequences, log_mel, to_batch
from finetune.tiny.audio_tower import (
    LETTERS,
    AudioHeads,
    HeadLogits,
    build_tower,
    collapse,
    spell,
    word_ids,
)
from finetune.tiny.audio_voices import synthetic_clips
from finetune.tiny.optimizers import build_optimizers, set_rates
from finetune.tiny.schedule import share_of_run, warm_up

logger = logging.getLogger(__name__)

CONTINUED_RATE = 0.5  # of the learning rates, where a run starts from trained weights


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioTraining:
    """Settings of one run.

    Attributes:
        steps: Optimiser steps.
        minutes: If given, stop after this time too, with the learning rate at 0; on a machine
            that others use, a run then ends when it should.
        batch_size: Clips in a step; a step on digit sequences takes half as many.
        learning_rate: AdamW's highest learning rate.
        muon_learning_rate: Muon's highest learning rate; an update's root mean square is 0.2 of it.
        weight_decay: Muon's, on the matrices of the tower's layers only.
        warmup_steps: Steps of linear warm-up of both learning rates, or a fifth of all; a cosine
            falls to 0.
        refresh: Share of a batch that is replaced in the pool after each step.
        sequence_every: Each n-th step is on digit sequences.
        label_smoothing: Of the label head.
        average_decay: Share of the averaged weights that stays at each step.
        ctc_weight: Weight of each CTC loss on single words; sequences have only these.
        evaluate_every: Steps between evaluations, which also write a checkpoint.
        voices: Train on synthetic voices too; recordings alone are few speakers.
        seed: Seed of weights and data.
        head_steps: Steps in which only the heads learn, where they are fresh on a trained tower.
    """

    steps: int = 8000
    minutes: float | None = None
    batch_size: int = 48
    learning_rate: float = 1.5e-3
    muon_learning_rate: float = 6e-3
    weight_decay: float = 0.1
    warmup_steps: int = 300
    refresh: float = 0.25
    sequence_every: int = 8
    label_smoothing: float = 0.1
    average_decay: float = 0.999
    ctc_weight: float = 0.3
    evaluate_every: int = 250
    voices: bool = True
    seed: int = 0
    head_steps: int = 300

    def continued(self) -> "AudioTraining":
        """Return the settings of a run that starts from trained weights."""
        return replace(
            self,
            learning_rate=CONTINUED_RATE * self.learning_rate,
            muon_learning_rate=CONTINUED_RATE * self.muon_learning_rate,
        )


class TowerWithHeads(nn.Module):
    """The tower and its heads as one module."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.tower = build_tower(seed)
        self.heads = AudioHeads(self.tower.config.hidden_size)

    def forward(self, features: Tensor, mask: Tensor) -> tuple[HeadLogits, Tensor]:
        """Run both.

        Args:
            features: Log-mel features, shape (batch, frames, mel).
            mask: True where a frame is real, shape (batch, frames).

        Returns:
            The scores, and the number of real tokens of each clip, shape (batch,).
        """
        output = self.tower(features, attention_mask=mask)
        token_mask = output.attention_mask.bool()
        return self.heads(output.last_hidden_state, token_mask), token_mask.sum(-1)


def compute_loss(model: TowerWithHeads, batch: list[Example], settings: AudioTraining) -> Tensor:
    """Label loss plus both CTC losses; a sequence of several words has no label."""
    features, mask = to_batch(batch)
    scores, num_tokens = model(features, mask)
    ctc = sum(
        _ctc(head, [encode(e.words) for e in batch], num_tokens)
        for head, encode in ((scores.letters, spell), (scores.words, word_ids))
    )
    if len(batch[0].words) > 1:
        return torch.as_tensor(ctc)
    labels = torch.tensor([LABELS.index(e.words[0]) for e in batch])
    named = F.cross_entropy(scores.label, labels, label_smoothing=settings.label_smoothing)
    return named + settings.ctc_weight * ctc


def _ctc(scores: Tensor, targets: list[list[int]], num_tokens: Tensor) -> Tensor:
    return F.ctc_loss(
        scores.log_softmax(-1).transpose(0, 1),
        torch.tensor([symbol for target in targets for symbol in target]),
        num_tokens,
        torch.tensor([len(target) for target in targets]),
        zero_infinity=True,
    )


@torch.inference_mode()
def evaluate(model: nn.Module, groups: dict[str, list[Example]]) -> dict[str, float]:
    """Measure shares that are right, per group of held-out examples.

    Args:
        model: What to measure: a `TowerWithHeads` or an average of one.
        groups: Examples by name of the group. The label head answers for single words and
            the word CTC for sequences; a sequence counts only if every word is right.
    """
    model.eval()
    figures: dict[str, float] = {}
    for name, examples in groups.items():
        right = spelled = 0
        for start in range(0, len(examples), 64):
            batch = examples[start : start + 64]
            scores, num_tokens = model(*to_batch(batch))
            for i, example in enumerate(batch):
                n = int(num_tokens[i])
                if len(example.words) == 1:
                    right += LABELS[int(scores.label[i].argmax())] == example.words[0]
                    letters = collapse(scores.letters[i, :n])
                    spelled += letters == spell(example.words)
                else:
                    right += collapse(scores.words[i, :n]) == word_ids(example.words)
        figures[name] = round(right / len(examples), 4)
        if name == "speech_commands_words":
            figures["speech_commands_words_spelled"] = round(spelled / len(examples), 4)
    model.train()
    return figures


def validation_groups(clips: list[Clip]) -> dict[str, list[Example]]:
    """Sort the held-out clips into the groups that are reported, without augmentation."""
    groups: dict[str, list[Example]] = {
        "fsdd_digits": [],
        "speech_commands_digits": [],
        "speech_commands_words": [],
        "silence": [],
    }
    for clip in clips:
        example = Example(log_mel(clip.waveform), (clip.label,))
        if clip.label == SILENCE:
            groups["silence"].append(example)
        elif clip.source == "fsdd":
            groups["fsdd_digits"].append(example)
        else:
            groups["speech_commands_words"].append(example)
            if clip.label in DIGITS:
                groups["speech_commands_digits"].append(example)
    for source in ("fsdd", "speech_commands"):
        digits = [c for c in clips if c.source == source and c.label in DIGITS]
        groups[f"{source}_sequences"] = fixed_sequences(digits, count=100)
    return groups


def build_average(model: nn.Module, decay: float) -> AveragedModel:
    """Build the running average of a model's weights and of its statistics (buffers)."""
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


def train(
    data: Path,
    out: Path,
    settings: AudioTraining,
    *,
    resume: bool = False,
    initial: Path | None = None,
) -> None:
    """Run the training and write its results into `out`.

    Args:
        data: The folder that holds `fsdd/` and `speech_commands/`.
        out: Where weights, figures, the checkpoint and the synthetic voices go.
        settings: How to train.
        resume: Go on from the checkpoint in `out` if there is one.
        initial: Folder of an earlier run whose weights this one starts from, with a fresh schedule.
            If it has no heads (an unpacked checkpoint has none), they learn alone for the first
            `head_steps`.
    """
    out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    model = TowerWithHeads(settings.seed)
    head_steps = 0
    if initial is not None:
        model.tower.load_state_dict(load_file(initial / "audio_tower.safetensors"))
        if (initial / "heads.safetensors").is_file():
            model.heads.load_state_dict(load_file(initial / "heads.safetensors"))
        else:
            head_steps = settings.head_steps
    average = build_average(model, settings.average_decay)
    optimizers = build_optimizers(
        model.parameters(), model.tower.layers.parameters(), weight_decay=settings.weight_decay
    )
    step = num_clips = 0
    seconds = 0.0
    checkpoint = out / "checkpoint.pt"
    if resume and checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        step, num_clips, seconds = state["step"], state["num_clips"], state["seconds"]
    train_clips = load_clips(data, "train")
    if settings.voices:
        train_clips += synthetic_clips(cache=out / "voices.npz")
    groups = validation_groups(load_clips(data, "validation"))
    # A resumed run draws other examples than those the stopped run has seen.
    pool = ExamplePool(train_clips, seed=settings.seed + step)
    logger.info(
        "ready after %.0f s; %d training clips", time.perf_counter() - started, len(train_clips)
    )

    started = time.perf_counter() - seconds
    losses: list[float] = []
    done = 0.0
    while done < 1:
        share = schedule_at(step, done, settings)
        set_rates(
            optimizers,
            muon=share * settings.muon_learning_rate,
            adamw=share * settings.learning_rate,
        )
        model.tower.requires_grad_(step >= head_steps)
        model.zero_grad()
        sequences = step % settings.sequence_every == settings.sequence_every - 1
        batch_size = settings.batch_size // 2 if sequences else settings.batch_size
        batch = pool.draw(batch_size, sequences=sequences)
        loss = compute_loss(model, batch, settings)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        average.update_parameters(model)
        pool.refresh(round(batch_size * settings.refresh), sequences=sequences)
        step += 1
        num_clips += batch_size
        if not sequences:
            losses.append(loss.item())
        seconds = time.perf_counter() - started
        done = share_done(step, seconds, settings)
        if step % settings.evaluate_every == 0 or done >= 1:
            figures = {
                "step": step,
                "clips": num_clips,
                "seconds": round(seconds),
                "loss": round(float(np.mean(losses)), 4),
                **evaluate(average.module, groups),
            }
            losses.clear()
            logger.info("%s", json.dumps(figures))
            with (out / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(figures) + "\n")
            save(model, average, optimizers, out, figures, settings)


def share_done(step: int, seconds: float, settings: AudioTraining) -> float:
    """Say how much of the run is over, by steps or by the clock, from 0 to 1."""
    return share_of_run(step, settings.steps, seconds, settings.minutes)


def schedule_at(step: int, done: float, settings: AudioTraining) -> float:
    """Return the share of the highest rates: linear warm-up, then a cosine down to zero."""
    warm = warm_up(step, settings.steps, settings.warmup_steps)
    return warm * 0.5 * (1 + math.cos(math.pi * done))


def save(
    model: TowerWithHeads,
    average: AveragedModel,
    optimizers: Sequence[torch.optim.Optimizer],
    out: Path,
    figures: dict[str, float],
    settings: AudioTraining,
) -> None:
    """Write averaged weights, figures and the checkpoint; a stop leaves the old one whole."""
    for part, name in (("tower", "audio_tower"), ("heads", "heads")):
        averaged = average.module.get_submodule(part)
        save_file(averaged.state_dict(), out / f"{name}.safetensors")
    summary = {
        "figures": figures,
        "settings": asdict(settings),
        "labels": LABELS,
        "letters": LETTERS,
        "tower": model.tower.config.to_diff_dict(),
        "parameters": sum(p.numel() for p in model.tower.parameters()),
    }
    (out / "metrics.json").write_text(json.dumps(summary, indent=1) + "\n")
    state = {
        "model": model.state_dict(),
        "average": average.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "step": figures["step"],
        "num_clips": figures["clips"],
        "seconds": figures["seconds"],
    }
    torch.save(state, out / "checkpoint.new")
    (out / "checkpoint.new").replace(out / "checkpoint.pt")


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description="Train the audio tower of omni-tiny.")
    parser.add_argument("--data", type=Path, required=True, help="folder with the recordings")
    parser.add_argument("--out", type=Path, required=True, help="folder for weights and figures")
    parser.add_argument("--steps", type=int, default=AudioTraining().steps)
    parser.add_argument("--minutes", type=float, help="stop after this time, if not done before")
    parser.add_argument("--batch-size", type=int, default=AudioTraining().batch_size)
    parser.add_argument(
        "--no-voices", action="store_true", help="train on recordings alone, by few speakers"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--initial", type=Path, help="start from the weights of an earlier run")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--threads", type=int, default=1, help="cores to use")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    settings = AudioTraining(
        steps=options.steps,
        minutes=options.minutes,
        batch_size=options.batch_size,
        voices=not options.no_voices,
        seed=options.seed,
    )
    if options.initial is not None:
        settings = settings.continued()
    train(options.data, options.out, settings, resume=options.resume, initial=options.initial)


if __name__ == "__main__":
    main()
