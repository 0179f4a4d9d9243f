"""Stage 2 takes the product's path: encoded media give the ids, labels and scores of real ones."""

import pickle
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from finetune.guide import FACT
from finetune.tiny import joint_pool
from finetune.tiny.drawing import draw_frame, random_motion, random_still
from finetune.tiny.joint_pool import (
    Encoded,
    EncodedProcessor,
    Pool,
    encode_subjects,
    pack_rows,
    random_reduction,
)
from finetune.tiny.model_config import build_model, processor_settings
from finetune.tiny.spelling import mark_answers, spell_answers
from finetune.tiny.subjects import SHARES, Subject, encode_clip
from finetune.tiny.tokenizer import build_tokenizer
from finetune.tiny.train_joint import JointTraining, LoadBalance, trained_state
from finetune.tiny.turns import chat, pair_turn, text_turn, turns_about
from omni.inputs import IGNORE_INDEX
from omni.media import load_media
from omni.options import MediaOptions
from omni.processor import OmniProcessor
from token_reduction import build

TOKENIZER = build_tokenizer()


@pytest.fixture(scope="module")
def models():
    """The model with its towers, and the same with towers that must not be run."""
    torch.manual_seed(0)
    real = build_model(len(TOKENIZER))
    light = build_model(len(TOKENIZER))
    light.load_state_dict(real.state_dict())
    for tower in (light.vision_model, light.audio_tower):
        for weight in tower.parameters():
            torch.nn.init.constant_(weight, torch.nan)
    return real, light


def still(seed: int = 0) -> Subject:
    pixels, facts = random_still(np.random.default_rng(seed))
    return Subject("still", load_media(pixels), facts)


def clip(num_frames: int) -> Subject:
    rng = np.random.default_rng(1)
    motion = random_motion(rng, (64, 96))._replace(num_frames=num_frames)
    frames = [draw_frame(rng, motion, i) for i in range(num_frames)]
    facts = {"colour": motion.colour, "shape": motion.shape, "direction": motion.direction}
    return Subject("clip", load_media(np.stack(frames), fps=3.0), facts)


def recording(word: str = "seven") -> Subject:
    waveform = np.random.default_rng(2).normal(0, 0.1, 14_321).astype(np.float32)
    return Subject("word", load_media(waveform, sampling_rate=16_000), {"label": word})


class OpenedProcessor(OmniProcessor):
    """The product's processor for subjects whose media are open already."""

    def load_media(self, source, **options):
        return source.medium


@pytest.mark.parametrize(
    ("subjects", "reduction"),
    [
        ([still()], "identity"),
        ([clip(5)], "evs(0.4)"),
        ([clip(6)], "identity"),
        ([recording()], "identity"),
        ([still(), recording(), clip(7), still(3)], "evs(0.7)"),
    ],
    ids=["picture", "odd clip", "even clip", "recording", "all together"],
)
def test_encoded_media_give_the_ids_and_scores_of_real_ones(models, subjects, reduction):
    real, light = models
    rng = np.random.default_rng(0)
    turns = turns_about(rng, subjects[0])
    options = MediaOptions(reduction={"video": reduction})
    plain = OpenedProcessor(TOKENIZER, real.config, processor_settings())
    expected = plain(chat(subjects, turns, answered=True), options=options, with_labels=True)
    encoded = encode_subjects(real, processor_settings(), subjects)
    quick = EncodedProcessor(TOKENIZER, real.config, processor_settings())
    found = quick(chat(encoded, turns, answered=True), options=options, with_labels=True)

    assert torch.equal(found.input_ids, expected.input_ids)
    assert torch.equal(found.labels, expected.labels)
    found = pickle.loads(pickle.dumps(found))  # batches come from a process of their own
    with torch.no_grad():
        wanted, given = real(**expected), light(**found)
    # Features are kept in float16: 11 bits, through ten layers.
    torch.testing.assert_close(given.logits, wanted.logits, atol=2e-2, rtol=2e-2)
    assert given.loss.item() == pytest.approx(wanted.loss.item(), abs=1e-2)


def test_packing_rows_keeps_every_token_and_the_loss(models):
    _, light = models
    processor = EncodedProcessor(TOKENIZER, light.config, processor_settings())
    rng = np.random.default_rng(3)
    samples = [
        processor(chat([], [text_turn(rng)], answered=True), with_labels=True) for _ in range(12)
    ]
    packed = pack_rows(samples, pad_token_id=0)
    assert packed.num_tokens == sum(sample.num_tokens for sample in samples)
    assert packed.input_ids.shape[0] < len(samples)
    found = Counter(
        tuple(ids[mask & (segments == segment)].tolist())
        for ids, segments, mask in zip(
            packed.input_ids, packed.segment_ids, packed.attention_mask, strict=True
        )
        for segment in segments[mask].unique()
    )
    assert found == Counter(tuple(sample.input_ids[0].tolist()) for sample in samples)
    with torch.no_grad():
        together = light(**packed).loss.item()
        counts = [int((s.labels != IGNORE_INDEX).sum()) for s in samples]
        alone = [light(**sample).loss.item() for sample in samples]
    assert together == pytest.approx(np.average(alone, weights=counts), abs=1e-4)


def test_rows_are_filled_up_to_the_longest_sample_when_it_is_longer_than_a_row(models, monkeypatch):
    processor = EncodedProcessor(TOKENIZER, models[1].config, processor_settings())
    rng = np.random.default_rng(4)
    samples = [
        processor(chat([], [text_turn(rng)], answered=True), with_labels=True) for _ in range(12)
    ]
    longest = max(sample.num_tokens for sample in samples)
    others = sum(sample.num_tokens for sample in samples) - longest
    monkeypatch.setattr("finetune.tiny.joint_pool.ROW_TOKENS", 1)
    packed = pack_rows(samples, pad_token_id=0)
    lengths = packed.attention_mask.sum(1)
    assert packed.num_tokens == longest + others
    assert lengths.max() == longest
    # First fit: two neighbouring rows are never both at most half full.
    assert len(lengths) <= 2 + 2 * others // longest


def test_a_spelled_answer_reads_the_same_and_nothing_else_is_labelled(models):
    processor = EncodedProcessor(TOKENIZER, models[0].config, processor_settings())
    turn = turns_about(
        np.random.default_rng(0), Subject("line", still().medium, {"label": "Total red 7"})
    )[0]
    inputs = processor(chat([], [turn], answered=True), with_labels=True)
    spelled = spell_answers(inputs, [turn], TOKENIZER)
    assert TOKENIZER.decode(spelled.input_ids[0]) == TOKENIZER.decode(inputs.input_ids[0])
    labels = spelled.labels[0][spelled.labels[0] != IGNORE_INDEX]
    assert len(labels) == len("Total red 7") + 1
    assert TOKENIZER.decode(labels) == "Total red 7<|im_end|>"


def test_reasoning_before_an_answer_leaves_its_letters_and_their_places_as_they_are(models):
    processor = OmniProcessor(TOKENIZER, models[0].config, processor_settings())
    edges = np.linspace(0, 1, len("Total 7") + 1)
    subject = Subject("line", still().medium, {"label": "Total 7"})._replace(edges=edges)
    turns = turns_about(np.random.default_rng(0), subject)
    found = []
    for reasoned in (False, True):
        messages = chat([subject.medium], turns, answered=True, reasoned=reasoned)
        inputs = spell_answers(processor(messages, with_labels=True), turns, TOKENIZER)
        (item,) = mark_answers(inputs, turns, [[0]], TOKENIZER).media
        marks = item.facts[FACT]
        said = [int(inputs.input_ids[0, item.start + mark.query + 1]) for mark in marks]
        found.append((TOKENIZER.decode(said), [mark.tokens for mark in marks]))
    assert found[0] == found[1]
    assert found[1][0] == "Total 7"
    labels = inputs.labels[0][inputs.labels[0] != IGNORE_INDEX]
    assert TOKENIZER.decode(labels) == "I read.\n</think>\nTotal 7<|im_end|>"


def test_each_answer_is_true_of_the_subject_that_the_question_names():
    rng = np.random.default_rng(5)
    pair = (recording("seven"), still())
    for _ in range(40):
        turn = pair_turn(rng, pair)
        about_sound = turn.task in ("digit", "word")
        assert ("ecording" in turn.question) >= about_sound
        assert ("seven" in turn.answer.lower()) == about_sound


def test_several_questions_about_one_clip_ask_different_things():
    turns = turns_about(np.random.default_rng(0), clip(5), count=3)
    assert len({turn.task for turn in turns}) == 3
    messages = chat([clip(5)], turns, answered=False)
    assert [m["role"] for m in messages] == ["user", "assistant"] * 2 + ["user"]


def test_random_reductions_are_specs_up_to_the_highest_rate():
    rng = np.random.default_rng(0)
    specs = {random_reduction(rng) for _ in range(200)}
    assert "identity" in specs
    assert len(specs) > 20
    for spec in specs:
        build(spec)


def test_encoded_clips_open_as_videos_of_the_same_size():
    rng = np.random.default_rng(0)
    motion = random_motion(rng, (64, 80))
    frames = [draw_frame(rng, motion, i) for i in range(8)]
    video = load_media(encode_clip(frames, fps=4))
    assert (video.height, video.width, video.num_frames) == (64, 80, 8)


def test_load_balance_raises_the_bias_of_experts_that_get_little(models):
    _, light = models
    balance = LoadBalance(light, rate=0.1)
    light.train()
    light.language_model(torch.randint(30, 200, (1, 64)))
    light.eval()
    loads = [load.clone() for load in balance.load]
    balance.step()
    for router, load in zip(balance.routers, loads, strict=True):
        assert load.sum() == 64 * router.num_experts_per_tok
        bias = router.e_score_correction_bias
        assert bias[load.argmin()] > 0 > bias[load.argmax()]
        bias.zero_()


def test_only_decoder_and_projectors_are_trained(models):
    names = {name.split(".")[0] for name in trained_state(models[1])}
    assert names == {"language_model", "multi_modal_projector", "embed_audio"}


def test_the_learning_rate_warms_up_holds_and_falls():
    settings = JointTraining(steps=1000, warmup_steps=10, decay_share=0.5)
    rates = [settings.schedule_at(step, step / 1000) for step in range(1000)]
    assert rates[0] < rates[9] == rates[400] == 1.0
    assert rates[-1] == pytest.approx(0.02)
    assert sorted(rates[500:], reverse=True) == rates[500:]


def test_shares_that_are_not_given_keep_their_proportions():
    whole = sum(SHARES.values())
    everything = {task: share / whole for task, share in SHARES.items()}
    assert JointTraining(steps=1).all_shares() == pytest.approx(everything)
    shares = JointTraining(steps=1, shares={"word": 0.4, "line": 0.1}).all_shares()
    assert sum(shares.values()) == pytest.approx(1)
    assert (shares["word"], shares["line"]) == (0.4, 0.1)
    assert shares["photo"] / shares["clip"] == pytest.approx(SHARES["photo"] / SHARES["clip"])


def test_kinds_are_renewed_as_much_as_they_are_used(monkeypatch):
    drawn = Counter()

    def draw(task, rng):
        drawn[task] += 1
        return Subject(task, None, {})

    def encode(towers, settings, subjects):
        return [Encoded(subject, []) for subject in subjects]

    monkeypatch.setattr(joint_pool, "encode_subjects", encode)
    anything = SimpleNamespace(draw=draw, settings=None)
    shares = {"line": 0.5, "photo": 0.5}
    pool = Pool(anything, None, anything, seed=0, capacity=20, shares=shares)
    pool.fill(1.0)
    drawn.clear()
    for _ in range(200):
        pool.uses.update(line=9, photo=1)
        pool.grow(5)
    assert drawn.total() == 1000
    assert 850 < drawn["line"] < 950
