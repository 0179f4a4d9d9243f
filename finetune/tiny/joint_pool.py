"""Encoded subjects in memory, and training batches of conversations about them.

The towers are frozen in stage 2, so a medium is encoded once and talked about several times. The
prompt is still made by the product's processor and the loss by the product's model: only the rows
that a tower would be given are replaced by what it gave (`Window.is_hidden`).
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.random import Generator
from transformers import PreTrainedTokenizerBase

from finetune.guide import Places, find_places
from finetune.tiny.paging import PictureDocument
from finetune.tiny.spelling import mark_answers, spell_answers
from finetune.tiny.subjects import SHARES, Subject, Subjects
from finetune.tiny.turns import (
    Turn,
    chat,
    document_turns,
    pair_turn,
    reading_turn,
    text_turn,
    turns_about,
)
from omni.config import OmniConfig
from omni.inputs import OmniInputs, Window, collate, pack
from omni.media import Image
from omni.model import OmniModel
from omni.options import MediaOptions
from omni.planning import MediaPlanner
from omni.processor import OmniProcessor
from omni.prompt import mark as mark_medium
from omni.settings import ProcessorSettings
from omni.towers import batch_key, run_tower

TWO_WORDS_SHARE = 0.6  # of the pairs: two recordings, one of which says what is asked for
NO_REDUCTION_SHARE = 0.35  # of clips; the others lose a random share of their tokens to EVS
MAX_EVS_RATE = 0.7
MERGED_SHARE, MAX_MERGE_RATE = 0.2, 0.75  # of the samples; the same for pictures
REASONED_SHARE = 0.05  # of the samples; the others close the think block at once
NOTHING = "identity"  # the reducer that keeps every token
TEXT_SHARE, PAIR_SHARE, OFF_TOPIC_SHARE, MORE_TURNS_SHARE = 0.05, 0.22, 0.01, 0.7
# Of the pictures with print: several are read one after the other, and how many at most.
SEVERAL_SHARE = {"band": 0.2, "line": 0.6}
MOST_PICTURES = {"band": 5, "line": 14}
DOCUMENT_SHARE, MOST_PAGES = 0.4, 5  # of the pages: one or several as a document
# Of a document's other pages, those that show one of these instead of text.
PICTURE_PAGE_SHARE, PICTURE_PAGES = 0.3, ("still", "scene", "photo", "handwritten", "line")
ROW_TOKENS = 512  # rows of packed samples, unless a sample is longer
LENGTH_STEP = 128  # of rows: each new length costs the products milliseconds to prepare for


Batch = tuple[OmniInputs, Places | None, int]  # with the number of subjects drawn so far


class Encoded(NamedTuple):
    """A subject with the tower's output in place of its pixels or samples.

    Attributes:
        subject: Its medium is still there; the processor measures it.
        windows: What the towers gave: of the medium and, for a clip with sound, of its track.
    """

    subject: Subject
    windows: list[list[Window]]


class EncodedDocument(NamedTuple):
    """Pages of one document."""

    pages: tuple[Encoded, ...]


@torch.inference_mode()
def encode_subjects(
    towers: OmniModel, settings: ProcessorSettings, subjects: Sequence[Subject]
) -> list[Encoded]:
    """Run the towers over subjects, as the product would.

    Args:
        towers: A model with real towers.
        settings: Sampling of clips.
        subjects: What to encode.

    Returns:
        One for each subject, features in float16.
    """
    marked = [mark_medium(subject.medium, audio_in_video=True)[1] for subject in subjects]
    media = [medium for found in marked for medium in found]
    planner = MediaPlanner(media, towers.config, settings, MediaOptions(), max_tokens=10**6)
    plans = planner.plan()
    items = [plan.items[0] for plan in plans]
    alike: dict[Any, list[tuple[int, Window]]] = defaultdict(list)
    for index, item in enumerate(items):
        for window in item.windows:
            alike[batch_key(item, window), item.grid].append((index, window))
    found: list[list[Window]] = [[] for _ in items]
    for batch in alike.values():
        outputs, _ = run_tower(towers, items, batch)
        for (index, window), rows in zip(batch, outputs, strict=True):
            found[index].append(window._replace(rows=rows.half(), is_hidden=True))
    encoded = iter(found)
    return [
        Encoded(subject, list(islice(encoded, len(own))))
        for subject, own in zip(subjects, marked, strict=True)
    ]


class EncodedProcessor(OmniProcessor):
    """The product's processor, for media that are encoded already."""

    def load_media(self, source: Any, **options: Any) -> Any:
        """Take an encoded subject's medium; it was opened when it was drawn."""
        if isinstance(source, EncodedDocument):
            pages = [page.subject.medium for page in source.pages]
            return PictureDocument([page for page in pages if isinstance(page, Image)])
        if isinstance(source, Encoded):
            return source.subject.medium
        return super().load_media(source, **options)

    def __call__(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> OmniInputs:
        """Build a request or a sample as the product does, with encoded windows."""
        inputs = super().__call__(messages, **options)
        encoded = [
            windows
            for message in messages
            if not isinstance(message["content"], str)
            for part in message["content"]
            if part["type"] == "media"
            for source in _each(part["media"])
            for windows in source.windows
        ]
        media = [
            replace(
                item,
                windows=[window._replace(rows=window.rows.float()) for window in windows],
                cues=None,  # these hold the open medium, which cannot go to another process
                envelope=None,
            )
            for item, windows in zip(inputs.media, encoded, strict=True)
        ]
        return replace(inputs, media=media)


def _each(source: Encoded | EncodedDocument) -> tuple[Encoded, ...]:
    return source.pages if isinstance(source, EncodedDocument) else (source,)


class Pool:
    """Encoded training subjects; old ones give way to new ones.

    Args:
        subjects: Where they come from.
        towers: A model with real towers.
        processor: Makes samples.
        seed: Seed of every choice.
        capacity: Subjects that are held, over all tasks.
        shares: How often each task is drawn; `SHARES` by default.
    """

    def __init__(
        self,
        subjects: Subjects,
        towers: OmniModel,
        processor: EncodedProcessor,
        *,
        seed: int,
        capacity: int,
        shares: Mapping[str, float] = SHARES,
    ) -> None:
        self.subjects, self.towers, self.processor = subjects, towers, processor
        self.rng = np.random.default_rng(seed)
        self.capacity = {task: round(capacity * share) for task, share in shares.items()}
        self.shares = shares
        self.held: dict[str, list[Encoded]] = {task: [] for task in shares}
        self.uses = Counter[str]()
        self.num_drawn = 0

    def grow(self, count: int) -> None:
        """Draw and encode new subjects; where a task is full they replace random ones.

        Tasks of which much was used get many: a sample may read a dozen lines, and none should be
        seen more often than a photo.
        """
        used = {task: self.uses[task] + share for task, share in self.shares.items()}
        tasks = self._tasks(count, used)
        drawn = [self.subjects.draw(task, self.rng) for task in tasks]
        for encoded in encode_subjects(self.towers, self.processor.settings, drawn):
            held = self.held[encoded.subject.task]
            if len(held) < self.capacity[encoded.subject.task]:
                held.append(encoded)
            else:
                held[int(self.rng.integers(len(held)))] = encoded
        self.num_drawn += count

    def fill(self, share: float) -> None:
        """Fill the pool to a share of its capacity, every task alike."""
        for task, capacity in self.capacity.items():
            count = max(1, round(capacity * share))
            while (missing := count - len(self.held[task])) > 0:
                drawn = [self.subjects.draw(task, self.rng) for _ in range(min(missing, 16))]
                self.held[task] += encode_subjects(self.towers, self.processor.settings, drawn)
                self.num_drawn += len(drawn)

    def sample(self) -> OmniInputs:
        """Make one conversation about subjects of the pool, or about none."""
        rng = self.rng
        kind = rng.random()
        if kind < TEXT_SHARE:
            return self._inputs([], [text_turn(rng)])
        kind -= TEXT_SHARE
        if kind < PAIR_SHARE:
            is_word = rng.random() < TWO_WORDS_SHARE
            tasks = ("word", "word") if is_word else self._tasks(2, self.shares)
            pair = [self._held(task) for task in tasks]
            return self._inputs(pair, [pair_turn(rng, [e.subject for e in pair])])
        kind -= PAIR_SHARE
        encoded = self._held(*self._tasks(1, self.shares))
        task = encoded.subject.task
        if rng.random() < SEVERAL_SHARE.get(task, 0):
            more = int(rng.integers(1, MOST_PICTURES[task]))
            several = [encoded, *(self._held(task) for _ in range(more))]
            return self._inputs(several, [reading_turn(rng, [e.subject for e in several])])
        if kind < OFF_TOPIC_SHARE:
            return self._inputs([encoded], [text_turn(rng)])
        count = 4 if rng.random() < MORE_TURNS_SHARE else 1
        if task == "page" and rng.random() < DOCUMENT_SHARE:
            drawn = [encoded, *(self._page() for _ in range(int(rng.integers(MOST_PAGES))))]
            pages = [drawn[i] for i in rng.permutation(len(drawn))]
            turns = document_turns(rng, [page.subject for page in pages], count=count)
            return self._inputs([EncodedDocument(tuple(pages))], turns)
        return self._inputs([encoded], turns_about(rng, encoded.subject, count=count))

    def batch(self, size: int) -> tuple[OmniInputs, Places | None]:
        """Make `size` samples, packed into rows of about `ROW_TOKENS`, and where to read them."""
        inputs = pack_rows([self.sample() for _ in range(size)], self.processor.ids.pad)
        return inputs, find_places(inputs)

    def _tasks(self, count: int, shares: Mapping[str, float]) -> list[str]:
        chances = np.fromiter(shares.values(), float)
        return [str(t) for t in self.rng.choice(list(shares), count, p=chances / chances.sum())]

    def _page(self) -> Encoded:
        """A page of a document: text, or now and then a picture."""
        pictures = [task for task in PICTURE_PAGES if self.held.get(task)]
        if pictures and self.rng.random() < PICTURE_PAGE_SHARE:
            return self._held(str(self.rng.choice(pictures)))
        return self._held("page")

    def _held(self, task: str) -> Encoded:
        self.uses[task] += 1
        return self.held[task][int(self.rng.integers(len(self.held[task])))]

    def _inputs(
        self, media: Sequence[Encoded | EncodedDocument], turns: Sequence[Turn]
    ) -> OmniInputs:
        images = random_image_reduction(self.rng)
        reduction = {"video": random_reduction(self.rng), "image": images}
        options = MediaOptions(audio_in_video=True, reduction=reduction)
        reasoned = bool(self.rng.random() < REASONED_SHARE)
        messages = chat(media, turns, answered=True, reasoned=reasoned)
        inputs = self.processor(messages, options=options, with_labels=True)
        inputs = spell_answers(inputs, turns, self.processor.tokenizer)
        return mark_answers(inputs, turns, _items_of(media), self.processor.tokenizer)


def _items_of(media: Sequence[Encoded | EncodedDocument]) -> list[list[int]]:
    """Items of each page, picture, clip or recording; a clip with sound has two."""
    items: list[list[int]] = []
    for encoded in (encoded for source in media for encoded in _each(source)):
        first = items[-1][-1] + 1 if items else 0
        items.append([first + n for n in range(len(encoded.windows))])
    return items


def random_reduction(rng: Generator) -> str:
    """Draw how a clip's tokens are reduced, so that the model gets used to any rate."""
    if rng.random() < NO_REDUCTION_SHARE:
        return NOTHING
    return f"evs({rng.uniform(0.05, MAX_EVS_RATE):.2f})"


def random_image_reduction(rng: Generator) -> str:
    """Draw how the tokens of a sample's pictures are reduced: mostly not at all."""
    if rng.random() > MERGED_SHARE:
        return NOTHING
    return f"merge({rng.uniform(0.3, MAX_MERGE_RATE):.2f})"


def pack_rows(samples: Sequence[OmniInputs], pad_token_id: int) -> OmniInputs:
    """Pack samples into rows of `ROW_TOKENS`, or of the longest sample, and pad the rows.

    Args:
        samples: One row each.
        pad_token_id: Fills the end of short rows.
    """
    rows: list[list[OmniInputs]] = []
    room: list[int] = []
    # All rows are padded to the longest, so all may be as long as it.
    capacity = max(ROW_TOKENS, *(sample.num_tokens for sample in samples))
    for index in sorted(range(len(samples)), key=lambda i: -samples[i].num_tokens):
        length = samples[index].num_tokens
        row = next((i for i, left in enumerate(room) if left >= length), None)
        if row is None:
            rows.append([])
            room.append(capacity)
            row = len(rows) - 1
        rows[row].append(samples[index])
        room[row] -= length
    packed = [pack(row) for row in rows]
    return collate(packed, pad_token_id=pad_token_id, padding_side="right", multiple_of=LENGTH_STEP)


class PoolBatches(torch.utils.data.IterableDataset[Batch]):
    """Batches from a pool that renews itself; made in a process of their own.

    Args:
        pool: Filled in the process that iterates.
        batch_size: Samples of a batch.
        renewed: New subjects after each batch.
        fill: Share of the pool that is filled before the first batch.
    """

    def __init__(self, pool: Pool, *, batch_size: int, renewed: int, fill: float) -> None:
        self.pool, self.batch_size, self.renewed, self.fill = pool, batch_size, renewed, fill

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches without end, each with the number of subjects drawn so far."""
        torch.set_num_threads(1)
        self.pool.fill(self.fill)
        while True:
            yield *self.pool.batch(self.batch_size), self.pool.num_drawn
            self.pool.grow(self.renewed)


def build_processor(
    tokenizer: PreTrainedTokenizerBase, config: OmniConfig, settings: ProcessorSettings
) -> EncodedProcessor:
    """Build the processor of stage 2."""
    return EncodedProcessor(tokenizer, config, settings)
