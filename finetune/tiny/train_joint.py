r"""Train the decoder and the projectors of `omni-tiny` on what its frozen towers see and hear.

    omni finetune --recipe omni-tiny-3

Writes `checkpoint.pt` (what was trained, and the optimiser), `tokenizer/` and a line of figures per
evaluation in `metrics.jsonl`; `finetune.tiny.export` makes a checkpoint of the product from it. A
stopped run goes on with `--resume`, also with more steps or with towers that were trained further.
"""

import argparse
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from finetune.guide import ReadingGuide
from finetune.tiny.bands import MAX_LETTERS
from finetune.tiny.export import load_tokenizer
from finetune.tiny.joint_pool import (
    Batch,
    Encoded,
    EncodedProcessor,
    Pool,
    PoolBatches,
    build_processor,
    encode_subjects,
)
from finetune.tiny.model_config import build_model, load_towers, processor_settings
from finetune.tiny.optimizers import build_optimizers, set_rates
from finetune.tiny.precision import bfloat16_is_faster
from finetune.tiny.schedule import share_of_run, warm_up
from finetune.tiny.score import score_answer
from finetune.tiny.subjects import SHARES, Subjects
from finetune.tiny.tokenizer import build_tokenizer
from finetune.tiny.turns import Turn, chat, text_turn, turns_about
from omni.assistant import Assistant
from omni.backbone.moe import Router
from omni.errors import RequestError
from omni.model import OmniModel

logger = logging.getLogger(__name__)

# What training changes; checkpoints hold only this.
TRAINED = ("language_model", "multi_modal_projector", "embed_audio")


@dataclass(frozen=True, slots=True, kw_only=True)
class JointTraining:
    """Settings of one run.

    Attributes:
        steps: Optimiser steps; the learning rate falls over the last `decay_share` of them.
        minutes: If given, stop after this time too, with the learning rate at its end; on a machine
            that others use, a run then ends when it should.
        batch_size: Samples in a step.
        learning_rate: AdamW's; kept after `warmup_steps` until it falls linearly to 2 % at the end.
        muon_learning_rate: Muon's, with the same schedule.
        warmup_steps: Steps of linear warm-up, or a fifth of all.
        decay_share: Share of the steps in which the learning rate falls.
        weight_decay: Muon's.
        max_grad_norm: Gradients are clipped to this norm.
        balance_rate: Step of a router's correction bias towards equal load of its experts.
        pool: Encoded subjects in memory.
        renewed: New subjects in the pool after each step.
        fill: Share of the pool that is filled before the first step.
        save_every: Steps between checkpoints.
        evaluate_every: Steps between evaluations.
        validation_items: Held-out subjects a task.
        shares: How often kinds of subjects are drawn, where that differs from `SHARES`; the others
            share the rest as they do there. A tower that has changed wants more of its kinds.
        guidance: Weight of the loss of where attention reads; see `finetune.guide`.
        band_letters: Most letters of a strip of print in training.
        seed: Seed of weights and data.
        bfloat16: Multiply matrices in bfloat16; weights stay float32. By default, if it is faster.
    """

    steps: int
    minutes: float | None = None
    batch_size: int = 32
    learning_rate: float = 2e-3
    muon_learning_rate: float = 3e-3
    warmup_steps: int = 60
    decay_share: float = 0.35
    weight_decay: float = 0.05
    max_grad_norm: float = 1.0
    balance_rate: float = 1e-3
    pool: int = 12_000
    renewed: int = 32
    fill: float = 0.08
    save_every: int = 40
    evaluate_every: int = 400
    validation_items: int = 48
    shares: Mapping[str, float] = field(default_factory=dict)
    guidance: float = 0.2
    band_letters: int = MAX_LETTERS
    seed: int = 0
    bfloat16: bool = field(default_factory=bfloat16_is_faster)

    def all_shares(self) -> dict[str, float]:
        """Return how often each kind of subject is drawn."""
        others = {task: share for task, share in SHARES.items() if task not in self.shares}
        scale = (1 - sum(self.shares.values())) / sum(others.values())
        return {**{task: share * scale for task, share in others.items()}, **self.shares}

    def share_done(self, step: int, seconds: float) -> float:
        """Say how much of the run is over, by steps or by the clock, from 0 to 1."""
        return share_of_run(step, self.steps, seconds, self.minutes)

    def schedule_at(self, step: int, done: float) -> float:
        """Return the share of the learning rates at a step, when so much of the run is over."""
        warm = warm_up(step, self.steps, self.warmup_steps)
        return warm * max(0.02, min(1.0, (1 - done) / self.decay_share))


class LoadBalance:
    """Nudges the correction bias of every router towards equal load, without a loss of its own.

    Args:
        model: Whose routers are watched, while it trains.
        rate: Change of a bias after one step.
    """

    def __init__(self, model: nn.Module, rate: float) -> None:
        self.rate = rate
        self.routers = [module for module in model.modules() if isinstance(module, Router)]
        self.load = [torch.zeros(len(router.weight)) for router in self.routers]
        for index, router in enumerate(self.routers):
            router.register_forward_hook(self._counter(index))

    def _counter(self, index: int):  # type: ignore[no-untyped-def]  # a hook
        def count(module: nn.Module, _: object, output: tuple[Tensor, Tensor]) -> None:
            if module.training:
                self.load[index] += torch.bincount(output[1].flatten(), minlength=len(
                    self.load[index])).float()  # fmt: skip

        return count

    @torch.no_grad()
    def step(self) -> None:
        """Move the biases and start counting anew."""
        for router, load in zip(self.routers, self.load, strict=True):
            router.e_score_correction_bias += self.rate * (load.mean() - load).sign()
            load.zero_()


class Validation:
    """Held-out subjects, encoded once, and the questions that are asked about them each time.

    Args:
        subjects: Of the validation split.
        towers: A model with real towers.
        processor: Makes prompts.
        count: Subjects a task.
    """

    def __init__(
        self, subjects: Subjects, towers: OmniModel, processor: EncodedProcessor, count: int
    ) -> None:
        rng = np.random.default_rng(7)
        self.processor = processor
        self.cases: list[tuple[list[Encoded], Turn]] = []
        for task in SHARES:
            drawn = [subjects.draw(task, rng) for _ in range(count)]
            for encoded in encode_subjects(towers, processor.settings, drawn):
                for turn in turns_about(rng, encoded.subject, count=2 if task == "clip" else 1):
                    self.cases.append(([encoded], turn))
        self.cases += [([], text_turn(rng)) for _ in range(count // 2)]

    def run(self, model: OmniModel) -> dict[str, float]:
        """Answer every question through the chat path; mean score by task, reading by error."""
        assistant = Assistant(model.eval(), self.processor, name="omni-tiny")
        scores: dict[str, list[float]] = {}
        for start in range(0, len(self.cases), 24):
            cases = self.cases[start : start + 24]
            conversations = [chat(media, [turn], answered=False) for media, turn in cases]
            answers = assistant.chat_batch(conversations, max_new_tokens=160, audio_in_video=True)
            for (media, turn), answer in zip(cases, answers, strict=True):
                task = f"{media[0].subject.task}/{turn.task}" if media else turn.task
                scores.setdefault(task, []).append(score_answer(turn, answer))
        model.train()
        return {task: round(float(np.mean(found)), 3) for task, found in sorted(scores.items())}


def trained_state(model: OmniModel) -> dict[str, Tensor]:
    """Return the weights that stage 2 changes."""
    return {n: t for n, t in model.state_dict().items() if n.split(".")[0] in TRAINED}


def train(
    *,
    data: Path,
    vision: Path,
    audio: Path,
    voices: Path | None,
    out: Path,
    settings: JointTraining,
    resume: bool = False,
    initial: Path | None = None,
) -> None:
    """Run the training and write its results into `out`.

    Args:
        data: Folder of the training data.
        vision: Weights of the vision tower.
        audio: Weights of the audio tower.
        voices: File of the synthetic voices; None trains without them.
        out: Folder for checkpoint and figures; made if missing.
        settings: How to train.
        resume: Go on from the checkpoint in `out` if there is one.
        initial: Folder of an earlier run whose weights this one starts from, with a fresh schedule
            and fresh optimisers.

    Raises:
        RequestError: `out` has the tokenizer of another run than `initial`.
    """
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "tokenizer").is_dir():
        tokenizer = load_tokenizer(initial / "tokenizer") if initial else build_tokenizer()
        tokenizer.save_pretrained(out / "tokenizer")
    tokenizer = load_tokenizer(out / "tokenizer")
    if initial and load_tokenizer(initial / "tokenizer").get_vocab() != tokenizer.get_vocab():
        raise RequestError(
            f"{out / 'tokenizer'} has another vocabulary than {initial / 'tokenizer'}; expected an "
            "empty --out, which takes that of --initial."
        )
    torch.manual_seed(settings.seed)
    towers, model = build_model(len(tokenizer)), build_model(len(tokenizer))
    load_towers(towers, vision, audio)
    model.requires_grad_(False)  # its towers are never run: media come encoded
    for part in TRAINED:
        getattr(model, part).requires_grad_(True)
    layers = model.language_model.model.layers
    optimizers = build_optimizers(
        model.parameters(), layers.parameters(), weight_decay=settings.weight_decay
    )
    balance = LoadBalance(model, settings.balance_rate)
    guide = ReadingGuide(model)
    first_step, seconds, num_samples = 0, 0.0, 0
    if initial is not None:
        state = torch.load(initial / "checkpoint.pt", weights_only=True)
        model.load_state_dict({**model.state_dict(), **state["model"]})
    if resume and (out / "checkpoint.pt").is_file():
        state = torch.load(out / "checkpoint.pt", weights_only=True)
        model.load_state_dict({**model.state_dict(), **state["model"]})
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        first_step, seconds = state["step"], state["seconds"]
        num_samples = state["samples"]
        logger.info("resumed at step %d", first_step)

    processor = build_processor(tokenizer, towers.config, processor_settings())
    validation = Validation(
        Subjects(data, "validation"), towers, processor, settings.validation_items
    )
    # A resumed run draws other examples than those the stopped run has seen.
    pool = Pool(
        Subjects(data, "train", voices, band_letters=settings.band_letters),
        towers,
        processor,
        seed=settings.seed + first_step,
        capacity=settings.pool,
        shares=settings.all_shares(),
    )
    batches = _load(
        PoolBatches(
            pool, batch_size=settings.batch_size, renewed=settings.renewed, fill=settings.fill
        )
    )
    model.train()
    losses: list[float] = []
    misses: list[float] = []
    started = time.monotonic() - seconds
    share_done = settings.share_done(first_step, seconds)
    for step in range(first_step, settings.steps):
        inputs, places, num_subjects = next(batches)
        if step == first_step:
            started = time.monotonic() - seconds  # filling the pool is no training
        share = settings.schedule_at(step, share_done)
        set_rates(
            optimizers,
            muon=share * settings.muon_learning_rate,
            adamw=share * settings.learning_rate,
        )
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.bfloat16):
            loss = model(**inputs).loss
            missed = loss.new_zeros(()) if places is None else guide.loss(places) / len(places.rows)
        model.zero_grad()
        (loss + settings.guidance * missed).backward()
        nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        for optimizer in optimizers:
            optimizer.step()
        load = [(router_load / router_load.sum()).tolist() for router_load in balance.load]
        balance.step()

        done, seconds = step + 1, time.monotonic() - started
        num_samples += settings.batch_size
        share_done = settings.share_done(done, seconds)
        losses, misses = [*losses[-49:], loss.item()], [*misses[-49:], missed.item()]
        if done % 25 == 0:
            logger.info(
                "step %d loss %.3f, attention %.3f, %.2f s a step, %d subjects",
                done, float(np.mean(losses)), float(np.mean(misses)), seconds / done, num_subjects,
            )  # fmt: skip
        if done % settings.evaluate_every == 0 or share_done >= 1:
            figures = validation.run(model)
            row = {
                "step": done,
                "samples": num_samples,
                "seconds": round(seconds),
                "loss": round(float(np.mean(losses)), 4),
                "attention": round(float(np.mean(misses)), 4),
                "expert_load": [[round(share, 3) for share in shares] for shares in load],
                **figures,
            }
            logger.info("%s", row)
            with (out / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
        if done % settings.save_every == 0 or share_done >= 1:
            state = {
                "model": trained_state(model),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "step": done,
                "seconds": seconds,
                "samples": num_samples,
            }
            torch.save(state, out / "checkpoint.new")
            (out / "checkpoint.new").replace(out / "checkpoint.pt")
        if share_done >= 1:
            break


def _load(dataset: PoolBatches) -> Iterator[Batch]:
    """Make batches in a process of its own."""
    return iter(
        DataLoader(dataset, batch_size=None, num_workers=1, prefetch_factor=8, collate_fn=_as_it_is)
    )


def _as_it_is(batch: Any) -> Any:
    return batch  # the loader's own conversion does not know `OmniInputs`


def _task_share(text: str) -> tuple[str, float]:
    task, _, share = text.partition("=")
    if task not in SHARES:
        raise argparse.ArgumentTypeError(f"found {text!r}; expected for example line=0.2")
    return task, float(share)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the training data")
    parser.add_argument("--vision", type=Path, required=True, help="weights of the vision tower")
    parser.add_argument("--audio", type=Path, required=True, help="weights of the audio tower")
    parser.add_argument("--voices", type=Path, help="file of the synthetic voices")
    parser.add_argument("--out", type=Path, required=True, help="folder for weights and figures")
    parser.add_argument("--steps", type=int, required=True, help="optimiser steps")
    parser.add_argument("--minutes", type=float, help="stop after this time, if not done before")
    parser.add_argument("--batch-size", type=int, default=JointTraining(steps=1).batch_size)
    parser.add_argument("--pool", type=int, default=JointTraining(steps=1).pool)
    parser.add_argument(
        "--renewed",
        type=int,
        default=JointTraining(steps=1).renewed,
        help="new subjects in the pool after each step",
    )
    parser.add_argument("--learning-rate", type=float, default=JointTraining(steps=1).learning_rate)
    parser.add_argument(
        "--muon-learning-rate", type=float, default=JointTraining(steps=1).muon_learning_rate
    )
    parser.add_argument("--initial", type=Path, help="start from the weights of an earlier run")
    parser.add_argument(
        "--share",
        action="append",
        default=[],
        type=_task_share,
        metavar="TASK=SHARE",
        help=f"how often a kind of subject is drawn; one of {', '.join(SHARES)}",
    )
    parser.add_argument(
        "--band-letters", type=int, default=MAX_LETTERS, help="most letters of a strip of print"
    )
    parser.add_argument(
        "--guidance",
        type=float,
        default=JointTraining(steps=1).guidance,
        help="weight of where attention reads",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="cores of the training process")
    parser.add_argument(
        "--validation-items",
        type=int,
        default=JointTraining(steps=1).validation_items,
        help="held-out subjects a task",
    )
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    settings = JointTraining(
        steps=options.steps,
        minutes=options.minutes,
        batch_size=options.batch_size,
        pool=options.pool,
        renewed=options.renewed,
        learning_rate=options.learning_rate,
        muon_learning_rate=options.muon_learning_rate,
        shares=dict(options.share),
        guidance=options.guidance,
        band_letters=options.band_letters,
        validation_items=options.validation_items,
        seed=options.seed,
    )
    train(
        data=options.data,
        vision=options.vision,
        audio=options.audio,
        voices=options.voices,
        out=options.out,
        settings=settings,
        resume=options.resume,
        initial=options.initial,
    )


if __name__ == "__main__":
    main()
