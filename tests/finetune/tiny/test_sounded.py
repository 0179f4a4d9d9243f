"""Clips with sound: each word lies in its shape's time, and training takes the product's path."""

import io
import itertools
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from finetune.guide import FACT
from finetune.tiny import joint_pool, subjects
from finetune.tiny.answers import conclusion
from finetune.tiny.audio_data import DIGITS, SAMPLE_RATE, Clip, record
from finetune.tiny.drawing import COLOURS
from finetune.tiny.joint_pool import EncodedProcessor, Pool, encode_subjects
from finetune.tiny.model_config import build_model, processor_settings
from finetune.tiny.scene_questions import ask_sounded
from finetune.tiny.score import score_answer
from finetune.tiny.sounded import MAX_WORDS, Said, random_sounded
from finetune.tiny.subjects import FPS, Subject, Subjects, encode_clip
from finetune.tiny.tokenizer import build_tokenizer
from finetune.tiny.turns import Turn, chat, pair_turn, turns_about, which_turn
from omni.media import load_media
from omni.options import MediaOptions
from omni.processor import OmniProcessor

SEEDS = range(40)
TOKENIZER = build_tokenizer()
SOUND = MediaOptions(audio_in_video=True)


class OpenedProcessor(OmniProcessor):
    """The product's processor for media that are open already."""

    def load_media(self, source, **options):
        return source


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model(len(TOKENIZER))


def tones(count: int, seconds: float = 0.4) -> list[Clip]:
    """Recordings of digits, each a tone between pauses."""
    pause = np.zeros(2_000, np.float32)
    times = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    found = []
    for number, word in enumerate(DIGITS[:count]):
        tone = 0.3 * np.sin(2 * np.pi * (300 + 100 * number) * times).astype(np.float32)
        found.append(Clip(np.concatenate([pause, tone, pause]), word, "fsdd"))
    return found


@pytest.fixture
def make_subjects(monkeypatch):
    """Subjects whose words are tones."""
    monkeypatch.setattr(subjects, "load_clips", lambda data, split: tones(len(DIGITS)))
    return lambda split: Subjects(Path("nowhere"), split)


@pytest.mark.parametrize("seconds", [0.2, 0.7, 0.9, 1.2, 1.4, 2.0])
@pytest.mark.parametrize("noises", [None, ()], ids=["as it is", "varied"])
def test_each_word_is_heard_only_while_its_shape_is_seen(seconds, noises):
    for seed in range(10):
        rng = np.random.default_rng(seed)
        count = seed % MAX_WORDS + 1
        frames, track, said = random_sounded(rng, tones(count, seconds), FPS, noises)
        assert len(said) == count
        assert len(frames) <= 20
        assert 0 <= len(track) / SAMPLE_RATE - len(frames) / FPS < 0.064  # an AAC frame
        for one in said:
            assert one.shown_s[0] < one.said_s[0] < one.said_s[1] < one.shown_s[1]
            assert one.shown_s[1] - one.shown_s[0] in (1.0, 1.5)
            seen = range(round(FPS * one.shown_s[0]), round(FPS * one.shown_s[1]))
            distance = np.abs(frames.astype(int) - COLOURS[one.colour]).max(-1)
            assert (distance[list(seen)] < 30).any((1, 2)).all()
        for one, following in itertools.pairwise(said):
            assert one.shown_s[1] <= following.shown_s[0]
        if noises is None:
            loud = np.flatnonzero(np.abs(track) > 0.01) / SAMPLE_RATE
            assert all(any(a <= t <= b for a, b in (o.said_s for o in said)) for t in loud[::50])
            assert all(((a <= loud) & (loud <= b)).any() for a, b in (o.said_s for o in said))


def test_recording_again_leaves_every_sound_at_its_time():
    track = np.zeros(32_000, np.float32)
    track[12_000:12_400] = 0.5
    for seed in SEEDS:
        again = record(np.random.default_rng(seed), track)
        assert len(again) == len(track)
        assert 11_900 < np.abs(again).argmax() < 12_500


def test_shapes_and_words_of_a_clip_differ_and_a_seed_gives_the_same_clip(make_subjects):
    counts = Counter()
    drawing = make_subjects("validation")
    for seed in SEEDS:
        one, same = (drawing.draw("sounded", np.random.default_rng(seed)) for _ in range(2))
        assert one.encoded == same.encoded
        assert one.facts == same.facts
        said = one.facts["said"]
        assert len({s.word for s in said}) == len({(s.colour, s.shape) for s in said}) == len(said)
        counts[len(said)] += 1
    assert set(counts) == set(range(1, MAX_WORDS + 1))


def test_a_file_has_both_streams_and_they_keep_time():
    frames, track, _ = random_sounded(np.random.default_rng(3), tones(2), FPS)
    encoded = encode_clip(list(frames), FPS, track)
    with av.open(io.BytesIO(encoded)) as container:
        found = {stream.type: stream.codec_context.name for stream in container.streams}
    assert found == {"video": "h264", "audio": "aac"}
    heard = load_media(encoded).audio().waveform().numpy()
    assert len(heard) == len(track)
    shifts = [np.dot(heard, np.roll(track, shift)) for shift in range(-400, 401)]
    assert abs(int(np.argmax(shifts)) - 400) <= 1


def test_encoded_and_direct_clips_have_the_same_number_of_tokens(model):
    processor = OpenedProcessor(TOKENIZER, model.config, processor_settings())
    turn = Turn("word", "Which word?", "One.")
    for seed in range(6):
        frames, track, _ = random_sounded(np.random.default_rng(seed), tones(3), FPS)
        direct = subjects._with_sound(frames, track)
        media = (load_media(encode_clip(list(frames), FPS, track)), direct)
        inputs = [
            processor(chat([medium], [turn], answered=True), options=SOUND) for medium in media
        ]
        counts = [[item.num_tokens for item in found.media] for found in inputs]
        assert counts[0] == counts[1]
        assert len(counts[0]) == 2


def test_answers_follow_from_the_facts_and_names_are_not_shared():
    said = (
        Said("red", "circle", "seven", (0.0, 1.0), (0.2, 0.6)),
        Said("blue", "circle", "yes", (1.0, 2.0), (1.2, 1.6)),
        Said("red", "star", "cat", (2.0, 3.0), (2.2, 2.6)),
    )
    tasks = Counter()
    for seed in SEEDS:
        for qa in ask_sounded(np.random.default_rng(seed), said, 3.0):
            task, question, answer = qa.task, qa.question, qa.answer
            tasks[task] += 1
            told = "Red circle, seven, blue circle, yes, red star, cat: "
            if task == "shape_colour":  # asked by the word
                told = "Seven, red circle, yes, blue circle, cat, red star: "
            assert answer.startswith(told)
            named = [p for p in qa.parts if p.span and p.text != ", "]
            steps = [(p.span.start, p.is_heard) for p in named]
            assert sorted(steps) == [
                (start / 3, is_heard)
                for one in said
                for start, is_heard in ((one.shown_s[0], False), (one.said_s[0], True))
            ]
            assert [is_heard for _, is_heard in steps] == [
                task == "shape_colour",
                task == "word",
            ] * 3
            assert score_answer(Turn(task, question, answer), answer) == 1
            text = question.lower()
            if task == "word":
                [meant] = [
                    s
                    for s in said
                    if f"{s.colour} {s.shape}" in text
                    or (s.shape == "star" and "the star" in text)
                    or (s.colour == "blue" and "blue shape" in text)
                ]
                assert conclusion(answer) == f"{meant.colour} {meant.shape}, {meant.word}."
            else:
                [meant] = [s for s in said if s.word in text.split("while")[-1].split("when")[-1]]
                assert conclusion(answer) == f"{meant.word}, {meant.colour} {meant.shape}."
    assert set(tasks) == {"word", "shape_colour"}


def test_clips_with_sound_are_asked_about_alone_and_beside_others(make_subjects):
    rng = np.random.default_rng(0)
    subject = make_subjects("train").draw("sounded", rng)
    turns = turns_about(rng, subject, count=4)
    assert len({turn.question for turn in turns}) == len(turns) > 1
    word = Subject("word", load_media(tones(1)[0].waveform, sampling_rate=16_000), {"label": "no"})
    questions = {pair_turn(rng, (subject, word)).question.lower() for _ in range(30)}
    assert any("the clip" in q for q in questions)
    assert any("the recording" in q for q in questions)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_encoded_tracks_give_the_scores_of_real_ones(model, make_subjects, split):
    rng = np.random.default_rng(0)
    pair = [make_subjects(split).draw("sounded", rng) for _ in range(2)]
    turns = turns_about(rng, pair[0])
    # Of frames that are alike EVS keeps any, so nothing is reduced here.
    options = MediaOptions(audio_in_video=True, reduction={"video": "identity"})
    plain = OpenedProcessor(TOKENIZER, model.config, processor_settings())
    media = [subject.medium for subject in pair]
    expected = plain(chat(media, turns, answered=True), options=options, with_labels=True)
    encoded = encode_subjects(model, processor_settings(), pair)
    assert [len(one.windows) for one in encoded] == [2, 2]
    quick = EncodedProcessor(TOKENIZER, model.config, processor_settings())
    found = quick(chat(encoded, turns, answered=True), options=options, with_labels=True)
    assert torch.equal(found.input_ids, expected.input_ids)
    with torch.no_grad():
        wanted, given = model(**expected), model(**found)
    # Features are kept in float16: 11 bits, through ten layers. Of fresh routers a near tie falls
    # to another expert now and then, which moves the scores of that position.
    close = torch.isclose(given.logits, wanted.logits, atol=2e-2, rtol=2e-2)
    assert close.float().mean() > 0.99


def test_the_pools_samples_hold_the_sound_track(model, make_subjects):
    processor = EncodedProcessor(TOKENIZER, model.config, processor_settings())
    shares = {"sounded": 0.75, "word": 0.25}
    pool = Pool(make_subjects("train"), model, processor, seed=0, capacity=4, shares=shares)
    pool.fill(1.0)
    samples = [pool.sample() for _ in range(16)]
    alone = [s for s in samples if [item.modality for item in s.media] == ["video", "audio"]]
    assert len(alone) > 4
    with torch.no_grad():
        for sample in alone[:3]:  # fusion checks placeholders against features
            assert model(**sample).loss > 0


def word_at(inputs, place):
    return TOKENIZER.decode(inputs.input_ids[0, place]).strip().lower()


def marked(model, subjects, turn):
    """(word, item, share of its tokens at which it is shown) of each marked token, in order."""
    processor = EncodedProcessor(TOKENIZER, model.config, processor_settings())
    pool = Pool(None, model, processor, seed=0, capacity=0, shares={"sounded": 1.0})
    encoded = encode_subjects(model, processor_settings(), subjects)
    inputs = pool._inputs(encoded, [turn])
    found = []
    for number, item in enumerate(inputs.media):
        for mark in item.facts.get(FACT, ()):
            place = item.start + mark.query + 1
            word = word_at(inputs, place)
            looked_at = {word_at(inputs, item.start + token) for token in mark.tokens}
            if looked_at == {word}:
                found.append((place, word, "question", 0))
                continue
            steps = len(item.separators) + 1
            _, places = item.lay([item.num_tokens // steps] * steps)  # not the labels of frames
            ranks = [list(places).index(token) for token in mark.tokens]
            middle = (sum(ranks) / len(ranks) + 0.5) / item.num_tokens
            found.append((place, word, number, middle))
    return [entry[1:] for entry in sorted(found)]


def test_each_step_is_marked_in_the_frames_or_in_the_sound(model, make_subjects, monkeypatch):
    monkeypatch.setattr(joint_pool, "random_reduction", lambda rng: "identity")
    monkeypatch.setattr(joint_pool, "random_image_reduction", lambda rng: "identity")
    drawing = make_subjects("validation")
    subject = next(
        drawn
        for drawn in (drawing.draw("sounded", np.random.default_rng(seed)) for seed in SEEDS)
        if len(drawn.facts["said"]) == MAX_WORDS
    )
    said, seconds = subject.facts["said"], subject.medium.duration_s
    for task in ("word", "shape_colour"):
        [turn] = turns_about(np.random.default_rng(0), subject, wanted=task)
        expected = []
        for one in said:
            kind = [(word, 0, np.mean(one.shown_s)) for word in (one.colour, one.shape)]
            heard = [(one.word, 1, np.mean(one.said_s))]
            for step in (kind, heard) if task == "word" else (heard, kind):
                expected += [(",", *step[0][1:]), *step]
        expected = expected[1:]  # no comma before the first
        keys = conclusion(turn.answer).split(",")[0].split()
        asked = [key for key in keys if key in turn.question.lower()]
        assert asked
        expected += [(key, "question", 0) for key in asked]
        found = marked(model, [subject], turn)
        assert [entry[:2] for entry in found] == [entry[:2] for entry in expected]
        for (_, where, place), (*_, middle) in zip(found, expected, strict=True):
            assert where == "question" or abs(place - middle / seconds) < 0.05


def test_each_of_two_recordings_is_marked_where_it_is_named(model):
    words = [
        Subject("word", load_media(clip.waveform, sampling_rate=SAMPLE_RATE), {"label": clip.label})
        for clip in tones(2)
    ]
    labels = [subject.facts["label"] for subject in words]
    turn = which_turn(np.random.default_rng(0), tuple(labels))
    [asked] = [label for label in labels if label in turn.question]
    found = marked(model, words, turn)
    steps = [
        (word, number)
        for number, (label, place) in enumerate(zip(labels, ("first", "second"), strict=True))
        for word in (",", label, "is", place)
    ][1:]
    assert [entry[:2] for entry in found] == [*steps, (asked, "question")]
