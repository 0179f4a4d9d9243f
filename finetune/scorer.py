r"""Train the reducers `learned` and `resampler` through the answers; the rest is frozen.

    loss = (1 - w) * NLL(answer | reduced media) + w * T^2 * KL(p_full || p_reduced)

over the tokens of the answers. Each sample is reduced at a rate (or to a number of queries) of its
own, drawn from a range, so that one scorer serves all of them; the range is saved with the
checkpoint. p_full is what the same model says of the unreduced media (self-distillation as in
DynamicViT, arXiv 2106.02034; softened by a temperature T, arXiv 1503.02531).

A resampler passes the gradient of the loss on. A scorer chooses, and learns from trying several
choices on each sample (`finetune.exploration`). Media are encoded once a sample; only what follows
the choice runs for every draw.

Everything that a step does follows from its number, the seed and the weights: a run that was
stopped and goes on ends with the weights of one that was not.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from finetune.data import BadRow, Dataset, Sample, encode_sample
from finetune.exploration import exploring, policy_loss
from finetune.state import check_same_run, refuse_to_start_over
from finetune.update import check_finite
from omni.adapters import fingerprint
from omni.config import MODALITIES
from omni.errors import RequestError
from omni.inputs import IGNORE_INDEX, Modality, OmniInputs, collate
from omni.model import OmniModel
from omni.options import MediaOptions
from omni.processor import OmniProcessor
from omni.prompt import Message
from token_reduction import TokenLayout

STATE_FILE = "scorer_training.pt"
# Parts of the model that may be trained beside the scorers.
PROJECTORS = ("multi_modal_projector", "embed_audio")

Conversation = Sample | BadRow | Sequence[Message]
Tokens = tuple[Float[Tensor, "tokens hidden"], TokenLayout]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerTraining:
    """How to train.

    Attributes:
        steps: Optimiser steps.
        modalities: Whose scorers are trained; media of others are left as they are.
        rates: Lowest and highest rate that is drawn.
        queries: If given, resamplers are trained instead of scorers, with a number of queries that
            is drawn between these two.
        batch_size: Conversations in a step.
        learning_rate: Of the scorers, by AdamW; rises linearly over `warmup_steps`, falls along a
            half cosine.
        projector_learning_rate: Of the projectors, with the same schedule; 0 leaves them frozen.
        distillation: Weight w of the KL term, from 0 to 1; anything above 0 runs the model once
            more for each step, without reduction.
        temperature: T of the KL term.
        draws: Choices that a scorer tries on each sample, at least 2.
        noise: Scale of the noise that varies the choices; scores of about its size differ for sure.
        warmup_steps: Steps until the learning rate is reached.
        max_grad_norm: Gradients are clipped to this norm.
        save_every: Steps between two savings of the state.
        seed: Seed of the order of samples, of rates, and of the noise.

    Raises:
        RequestError: If a value is outside its range.
    """

    steps: int
    modalities: tuple[Modality, ...]
    rates: tuple[float, float] = (0.0, 0.85)
    queries: tuple[int, int] | None = None
    batch_size: int = 16
    learning_rate: float = 3e-3
    projector_learning_rate: float = 0.0
    distillation: float = 0.0
    temperature: float = 1.0
    draws: int = 2
    noise: float = 0.5
    warmup_steps: int = 20
    max_grad_norm: float = 1.0
    save_every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        low, high = self.rates
        wrong = {
            "steps": self.steps < 1,
            "modalities": not self.modalities or not set(self.modalities) <= set(MODALITIES),
            "rates": not 0 <= low <= high < 1,
            "queries": self.queries is not None and not 1 <= self.queries[0] <= self.queries[1],
            "batch_size": self.batch_size < 1,
            "distillation": not 0 <= self.distillation <= 1,
            "temperature": not self.temperature > 0,
            "draws": self.draws < 2,
            "noise": not self.noise > 0,
            "save_every": self.save_every < 1,
        }
        for name, is_wrong in wrong.items():
            if is_wrong:
                raise RequestError(
                    f"{name} is {getattr(self, name)!r}; expected {_EXPECTED[name]}."
                )

    def schedule_at(self, step: int) -> float:
        """Return the share of the learning rates at a step."""
        warm = min((step + 1) / max(self.warmup_steps, 1), 1.0)
        return warm * (0.5 + 0.5 * math.cos(math.pi * step / self.steps))

    def rate_of(self, number: int) -> float:
        """Return the rate at which the sample of a running number is reduced."""
        drawn = np.random.default_rng([self.seed, 1, number]).uniform(*self.rates)
        return min(max(round(float(drawn), 4), self.rates[0]), self.rates[1])

    def spec_of(self, number: int) -> str:
        """Return how the sample of a running number is reduced."""
        if self.queries is None:
            return f"learned({self.rate_of(number)!r})"
        drawn = np.random.default_rng([self.seed, 1, number]).integers(*self.queries, endpoint=True)
        return f"resampler({drawn})"


_EXPECTED = {
    "steps": "at least 1",
    "modalities": "at least one of image, video, audio",
    "rates": "the lowest and the highest rate, at least 0 and below 1, such as (0.0, 0.85)",
    "queries": "the fewest and the most, at least 1, such as (4, 64)",
    "batch_size": "at least 1",
    "distillation": "a weight from 0 to 1",
    "temperature": "a number above 0",
    "draws": "at least 2, to compare",
    "noise": "a number above 0",
    "save_every": "at least 1",
}


def train_scorers(
    model: OmniModel,
    processor: OmniProcessor,
    conversations: Sequence[Conversation],
    settings: ScorerTraining,
    *,
    out: Path | None = None,
    resume: bool = False,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """Train the scorers (or the resamplers) of a model in place; those it lacks are added.

    1. Draw samples and their rates; build prompts with labels; encode their media.
    2. Reduce, each sample several times; run the model on what is left (for distillation: on all).
    3. Step the scorers (and the projectors, if they have a learning rate).

    Args:
        model: What to train; left in eval mode.
        processor: Of the same checkpoint.
        conversations: A `finetune.data.Dataset`, or chat messages that end with an answer. Each has
            media of at least one of the modalities. They may be made when asked for; the same
            index must give the same conversation.
        settings: How.
        out: Folder for the state of the run and, at the end, the whole checkpoint; None saves
            nothing.
        resume: Go on from the state in `out`, if there is one.
        report: Called after each step with the steps that are done and the loss.

    Raises:
        RequestError: No conversations, one that cannot be read or is without an answer or media
            of the modalities, a modality that none of them has, or training diverges.
        CheckpointError: The state in `out` is of a run with other settings, data or weights; or
            there is one, and it is not to be resumed.
    """
    if not len(conversations):
        raise RequestError("Expected at least one conversation to train on, found none.")
    identity: dict[str, Any] = {}
    if out is not None:
        if not resume:
            refuse_to_start_over(out, STATE_FILE)
        identity = _identity(settings, conversations, model)
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        for modality in settings.modalities:
            if settings.queries is None:
                model.add_token_scorer(modality, settings.rates)
            else:
                model.add_resampler(modality, settings.queries)
    with _only_trained(model, settings) as trained:
        optimizer = torch.optim.AdamW(_groups(trained), weight_decay=0.0)
        first_step = 0
        if resume and out is not None and (out / STATE_FILE).is_file():
            first_step = _restore(out / STATE_FILE, trained, optimizer, identity)
        for step in range(first_step, settings.steps):
            for group in optimizer.param_groups:
                group["lr"] = settings.schedule_at(step) * _rate_of_group(group["name"], settings)
            with torch.random.fork_rng():
                torch.manual_seed(_seed_of(settings, step))
                objective, loss = _loss(model, processor, conversations, settings, step)
                optimizer.zero_grad()
                objective.backward()
            norm = nn.utils.clip_grad_norm_(trained.parameters(), settings.max_grad_norm)
            check_finite(loss, float(norm))
            optimizer.step()
            done = step + 1
            if done * settings.batch_size >= len(conversations) or done == settings.steps:
                _check_all_met(trained, optimizer)
            if out is not None and (done % settings.save_every == 0 or done == settings.steps):
                _save_state(out, trained, optimizer, identity, done)
            report(done, loss)
    if out is not None:
        model.save_pretrained(out)
        processor.save_pretrained(out)


# ---- one step ----


def _loss(
    model: OmniModel,
    processor: OmniProcessor,
    conversations: Sequence[Conversation],
    settings: ScorerTraining,
    step: int,
) -> tuple[Float[Tensor, ""], float]:
    """What to go down on, and the loss of the answers."""
    first = step * settings.batch_size
    numbers = range(first, first + settings.batch_size)
    samples = [conversations[i] for i in _indices(numbers, len(conversations), settings.seed)]
    specs = [settings.spec_of(number) for number in numbers]
    draws = settings.draws if settings.queries is None else 1
    whole = _batch(processor, samples, ["identity"] * len(samples), settings)
    reduced = _batch(processor, samples, specs, settings, copies=draws)

    encoded = model.encode(whole.media)
    with exploring(model.token_scorers, settings.noise) as tried:
        tokens = [
            model.build_reducer(item)(*those) if item.modality in settings.modalities else those
            for item, those in zip(reduced.media, _for_copies(whole, encoded, draws), strict=True)
        ]
    losses = _losses(model, reduced, tokens, settings, (whole, encoded))
    loss = losses.mean()
    if settings.queries is not None:
        return loss, loss.item()
    log_probabilities = losses.new_zeros(len(losses))
    scored = [
        (item.row, len(features))
        for item, (features, _) in zip(reduced.media, tokens, strict=True)
        if item.modality in settings.modalities
    ]
    for draw, (row, count) in zip(tried, scored, strict=True):
        log_probabilities[row] += draw.log_probability(count)
    by_sample = losses.unflatten(0, (-1, draws)), log_probabilities.unflatten(0, (-1, draws))
    return loss + policy_loss(*by_sample), loss.item()


def _batch(
    processor: OmniProcessor,
    samples: Sequence[Conversation],
    specs: Sequence[str],
    settings: ScorerTraining,
    copies: int = 1,
) -> OmniInputs:
    rows = []
    for sample, spec in zip(samples, specs, strict=True):
        if isinstance(sample, BadRow):
            raise RequestError(f"{sample}. Correct the row or leave it out.")
        options = MediaOptions(reduction=dict.fromkeys(settings.modalities, spec))
        if isinstance(sample, Sample):
            row = encode_sample(sample, processor, options=options)
        else:
            row = processor(sample, options=options, with_labels=True)
        if not any(item.modality in settings.modalities for item in row.media):
            kinds = ", ".join(sorted({item.modality for item in row.media})) or "none"
            raise RequestError(
                f"A conversation has media of {kinds}; expected at least one of "
                f"{', '.join(settings.modalities)}, whose scorer is trained. Leave it out."
            )
        rows += [row] * copies
    return collate(rows, pad_token_id=processor.ids.pad, padding_side="right")


def _for_copies(whole: OmniInputs, encoded: Sequence[Tokens], copies: int) -> Iterator[Tokens]:
    """The tokens of each row's media, row by row, each row as often as it was copied."""
    for row in range(len(whole.input_ids)):
        own = [those for item, those in zip(whole.media, encoded, strict=True) if item.row == row]
        yield from own * copies


def _losses(
    model: OmniModel,
    reduced: OmniInputs,
    tokens: Sequence[Tokens],
    settings: ScorerTraining,
    unreduced: tuple[OmniInputs, Sequence[Tokens]],
) -> Float[Tensor, " rows"]:
    """Loss of every row, a mean over the tokens of its answers."""
    logits, targets, row_of = _answer_logits(model, reduced, tokens)
    loss = F.cross_entropy(logits, targets, reduction="none")
    if settings.distillation:
        with torch.no_grad():
            taught, _, taught_row_of = _answer_logits(model, *unreduced)
        copies = len(reduced.input_ids) // len(unreduced[0].input_ids)
        taught = torch.cat(
            [rows for sample in _split(taught, taught_row_of) for rows in [sample] * copies]
        )
        divergence = F.kl_div(
            F.log_softmax(logits / settings.temperature, dim=-1),
            F.log_softmax(taught / settings.temperature, dim=-1),
            log_target=True,
            reduction="none",
        ).sum(-1)
        weight = settings.distillation
        loss = (1 - weight) * loss + weight * settings.temperature**2 * divergence
    return torch.stack([rows.mean() for rows in _split(loss, row_of)])


def _split(values: Tensor, row_of: Tensor) -> tuple[Tensor, ...]:
    return values.split(row_of.bincount().tolist())


def _answer_logits(
    model: OmniModel, inputs: OmniInputs, tokens: Sequence[Tokens]
) -> tuple[Float[Tensor, "targets vocab"], Int[Tensor, " targets"], Int[Tensor, " targets"]]:
    """Scores where a labelled token is predicted, in float32; the tokens, and their rows."""
    assert inputs.labels is not None
    placed = inputs.to(model.device)
    embeddings, _ = model.place(placed.input_ids, placed.media, tokens, placed.attention_mask)
    logits = model(inputs_embeds=embeddings, attention_mask=placed.attention_mask).logits
    is_target = inputs.labels[:, 1:] != IGNORE_INDEX
    targets = inputs.labels[:, 1:][is_target].to(logits.device)
    found = logits[:, :-1][is_target.to(logits.device)].float()
    return found, targets, is_target.nonzero()[:, 0]


def _indices(numbers: range, count: int, seed: int) -> Iterator[int]:
    """Conversations of running sample numbers: each pass over the data has an order of its own."""
    orders: dict[int, np.ndarray] = {}
    for number in numbers:
        epoch, place = divmod(number, count)
        if epoch not in orders:
            orders[epoch] = np.random.default_rng([seed, 0, epoch]).permutation(count)
        yield int(orders[epoch][place])


def _seed_of(settings: ScorerTraining, step: int) -> int:
    return int(np.random.default_rng([settings.seed, 2, step]).integers(2**63))


# ---- what is trained ----


@contextmanager
def _only_trained(model: OmniModel, settings: ScorerTraining) -> Iterator[nn.ModuleDict]:
    """Freeze all but what is trained; afterwards everything is as before, in eval mode."""
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    parts = model.token_scorers if settings.queries is None else model.resamplers
    trained = nn.ModuleDict({m: parts[m] for m in settings.modalities})
    model.eval().requires_grad_(False)
    if settings.projector_learning_rate:
        for name in PROJECTORS:
            if getattr(model, name) is not None:
                trained[name] = getattr(model, name)
    trained.requires_grad_(True)
    try:
        yield trained
    finally:
        for parameter, required in before.items():
            parameter.requires_grad_(required)
        model.eval()


def _check_all_met(trained: nn.ModuleDict, optimizer: torch.optim.Optimizer) -> None:
    """Refuse to call trained what no medium ever reached.

    Raises:
        RequestError: If there is one.
    """
    for name, part in trained.items():
        if name in MODALITIES and not any(p in optimizer.state for p in part.parameters()):
            raise RequestError(
                f"None of the conversations has media of {name}, so nothing was learned for them. "
                f"Leave {name} out of the modalities, or add such conversations."
            )


def _groups(trained: nn.ModuleDict) -> list[dict[str, Any]]:
    return [{"params": list(part.parameters()), "name": name} for name, part in trained.items()]


def _rate_of_group(name: str, settings: ScorerTraining) -> float:
    return settings.projector_learning_rate if name in PROJECTORS else settings.learning_rate


# ---- the state of a run ----


def _save_state(
    out: Path,
    trained: nn.ModuleDict,
    optimizer: torch.optim.Optimizer,
    identity: Mapping[str, Any],
    done: int,
) -> None:
    """Write the state beside the old one, then swap: a stop never leaves half a file."""
    out.mkdir(parents=True, exist_ok=True)
    state = {
        "settings": dict(identity),
        "step": done,
        "trained": trained.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    partial = out / f"{STATE_FILE}.partial"
    torch.save(state, partial)
    partial.replace(out / STATE_FILE)


def _restore(
    path: Path,
    trained: nn.ModuleDict,
    optimizer: torch.optim.Optimizer,
    identity: Mapping[str, Any],
) -> int:
    """Load a state; returns the steps that are done."""
    state: Mapping[str, Any] = torch.load(path, weights_only=True)
    check_same_run(state["settings"], identity)
    trained.load_state_dict(state["trained"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def _identity(
    settings: ScorerTraining, conversations: Sequence[Conversation], model: OmniModel
) -> dict[str, Any]:
    """What must be the same for a run to go on, in types that a safe load gives back."""
    kept = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in asdict(settings).items()
    }
    data = conversations.digest() if isinstance(conversations, Dataset) else ""
    return {**kept, "rows": len(conversations), "data": data, "base": fingerprint(model)}
