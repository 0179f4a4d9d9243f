"""Spoken words for omni-tiny: the split, augmentation, the pool, the tower and its losses."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import ParakeetEncoder
from transformers.audio_utils import hertz_to_mel

from finetune.tiny import audio_voices
from finetune.tiny.audio_data import (
    DIGITS,
    LABELS,
    SAMPLE_RATE,
    SILENCE,
    WORDS,
    Clip,
    _telephone,
    augment,
    background,
    draw_words,
    is_validation,
    load_clips,
    trim,
    word_sequence,
)
from finetune.tiny.audio_pool import Example, ExamplePool, log_mel, to_batch, warp_frequencies
from finetune.tiny.audio_tower import (
    LETTERS,
    AudioHeads,
    build_tower,
    collapse,
    spell,
    word_ids,
)
from finetune.tiny.train_audio import (
    AudioTraining,
    TowerWithHeads,
    build_average,
    compute_loss,
    evaluate,
    schedule_at,
    train,
)


def tone(seconds: float = 0.5, hertz: float = 440.0) -> np.ndarray:
    time_s = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return (0.3 * np.sin(2 * np.pi * hertz * time_s)).astype(np.float32)


def tone_clips(source: str = "fsdd") -> list[Clip]:
    spoken = [Clip(tone(hertz=200 + 100 * i), word, source) for i, word in enumerate(DIGITS)]
    noise = np.random.default_rng(0).standard_normal(SAMPLE_RATE).astype(np.float32)
    return [*spoken, Clip(noise * 0.1, SILENCE, "speech_commands")]


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """A data folder of the real layout: two speakers at 8 kHz, three at 16 kHz."""
    speakers = {
        "fsdd": (("george", "yweweler"), 8_000),
        "speech_commands": (("aa", "ab", "ak"), SAMPLE_RATE),
    }
    for source, (names, rate) in speakers.items():
        folder = tmp_path / source
        folder.mkdir()
        rows = []
        for name in names:
            for word in DIGITS:
                file = f"{name}_{word}.wav"
                soundfile.write(folder / file, tone(0.4)[: int(0.4 * rate)], rate)
                rows.append({"id": file, "file": file, "label": word, "speaker": name})
        (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def test_no_speaker_is_in_both_splits(recordings):
    train_clips = load_clips(recordings, "train")
    held_out = load_clips(recordings, "validation")
    assert len(train_clips) + len(held_out) == 50
    assert sorted({clip.source for clip in held_out}) == ["fsdd", "speech_commands"]
    assert len(held_out) == 20  # yweweler, and ak by its hash
    assert is_validation("yweweler")
    assert not is_validation("george")


def test_an_eighth_of_many_speakers_is_held_out():
    held_out = sum(is_validation(f"{i:08x}") for i in range(2000))
    assert 0.09 < held_out / 2000 < 0.15


def test_clips_come_at_16_khz(recordings):
    assert {len(clip.waveform) for clip in load_clips(recordings, "train")} == {6400}


def test_a_missing_manifest_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"fsdd.manifest\.jsonl is missing; --data must"):
        load_clips(tmp_path, "train")


@pytest.mark.parametrize("seconds", [0.05, 0.4, 1.0, 3.0])
def test_augmented_clips_are_finite_in_range_and_bounded(seconds):
    rng = np.random.default_rng(0)
    noises = [background(rng, SAMPLE_RATE)]
    for _ in range(20):
        result = augment(rng, tone(seconds), noises)
        assert result.dtype == np.float32
        assert np.isfinite(result).all()
        assert np.abs(result).max() <= 1.0
        assert len(result) <= max(1.28, 1.3 * seconds) * SAMPLE_RATE + 1


def test_nothing_that_is_said_is_cut_where_it_is_longer_than_its_room():
    for seed in range(20):
        result = augment(np.random.default_rng(seed), tone(3.0), room_seconds=1.0)
        assert len(result) >= 3.0 / 1.3 * SAMPLE_RATE - 1  # at the fastest pace


def test_augmentation_repeats_with_the_seed_and_leaves_its_input_alone():
    clip = tone()
    first, second = (augment(np.random.default_rng(3), clip) for _ in range(2))
    assert np.array_equal(first, second)
    assert np.array_equal(clip, tone())


def test_silent_input_survives_augmentation_and_trimming():
    silence = np.zeros(SAMPLE_RATE, np.float32)
    assert np.isfinite(augment(np.random.default_rng(0), silence)).all()
    assert len(trim(silence)) == SAMPLE_RATE


def test_trimming_cuts_the_pauses_around_a_word():
    pause = np.zeros(SAMPLE_RATE // 2, np.float32)
    assert 0.5 <= len(trim(np.concatenate([pause, tone(), pause]))) / SAMPLE_RATE <= 0.6


def test_a_rare_word_is_drawn_more_often_than_its_share():
    clips = [Clip(tone(), "one", "fsdd")] * 99 + [Clip(tone(), "two", "fsdd")]
    draws = draw_words(np.random.default_rng(0), clips, {"fsdd": 1.0, "voices": 9.0})
    drawn = [next(draws).label for _ in range(500)]
    assert 0.05 < drawn.count("two") / 500 < 0.15


def test_digits_get_nearly_half_of_a_source_of_many_words():
    clips = [Clip(tone(), w, "voices") for w in WORDS for _ in range(1 + 5 * (w not in DIGITS))]
    draws = draw_words(np.random.default_rng(0), clips, {"voices": 1.0})
    digits = sum(next(draws).label in DIGITS for _ in range(1000))
    assert 0.4 < digits / 1000 < 0.5


@given(margin=st.integers(0, 10))
def test_a_closer_cut_leaves_so_much_less(margin):
    pause = np.zeros(SAMPLE_RATE // 2, np.float32)
    padded = np.concatenate([pause, tone(), pause])
    wider, closer = trim(padded, margin=margin), trim(padded, margin=0)
    assert len(wider) - len(closer) == 2 * margin * SAMPLE_RATE // 100


@pytest.mark.parametrize("bits", [7, 12])
def test_a_telephone_keeps_the_low_half_of_the_band_to_its_bits(bits):
    low, high = tone(hertz=900), tone(hertz=6000)
    recorded = _telephone(low + high, bits=bits)
    middle = slice(2_000, 6_000)  # behind the filters' edges
    assert len(recorded) == len(low)
    assert np.abs(recorded - low)[middle].max() < 2.0 ** (2 - bits) * np.abs(low).max()


def test_a_sequence_holds_its_words_in_order():
    by_label = {word: [tone(0.3)] for word in DIGITS}
    waveform, words = word_sequence(np.random.default_rng(0), by_label)
    assert 2 <= len(words) <= 4
    assert len(waveform) >= 0.25 * SAMPLE_RATE * len(words)


@pytest.mark.parametrize(("samples", "frames"), [(1, 10), (1600, 10), (16_000, 100)])
def test_features_have_one_frame_per_10_ms_and_are_normalised(samples, frames):
    features = log_mel(np.random.default_rng(0).standard_normal(samples).astype(np.float32))
    assert features.shape == (frames, 80)
    assert features.float().mean().abs() < 0.01
    assert features.float().mean(0).abs().max() > 0.01  # bins keep their mean


def test_a_vocal_tract_of_the_same_length_changes_nothing():
    features = log_mel(np.random.default_rng(0).standard_normal(8_000).astype(np.float32))
    torch.testing.assert_close(warp_frequencies(features, 1.0), features, atol=2e-3, rtol=1e-3)


@given(factor=st.floats(0.8, 1.25), hertz=st.floats(300, 5000), time=st.integers(0, 9))
def test_a_formant_moves_by_the_factor_and_keeps_its_time(factor, hertz, time):
    bins_per_mel = 81 / hertz_to_mel(8000, mel_scale="slaney")

    def bin_of(frequency: float) -> float:
        return hertz_to_mel(frequency, mel_scale="slaney") * bins_per_mel - 1

    features = torch.zeros(10, 80)
    features[time] = -(torch.arange(80) - bin_of(hertz)).abs()
    warped = warp_frequencies(features.half(), factor)
    assert warped.shape == features.shape
    assert abs(int(warped[time].argmax()) - bin_of(hertz * factor)) <= 1.5
    assert not warped[torch.arange(10) != time].any()


def test_a_batch_masks_what_is_padding():
    examples = [Example(log_mel(tone(s)), ("one",)) for s in (0.3, 0.5)]
    features, mask = to_batch(examples)
    assert features.shape == (2, 50, 80)
    assert mask.sum(1).tolist() == [30, 50]
    assert not features[0, 30:].any()


def test_the_pool_replaces_examples_and_repeats_with_the_seed():
    pools = [ExamplePool(tone_clips(), seed=1, num_words=6, num_sequences=2) for _ in range(2)]
    drawn = [pool.draw(4) for pool in pools]
    for left, right in zip(*drawn, strict=True):
        assert left.words == right.words
        assert torch.equal(left.features, right.features)
    before = list(pools[0]._words)
    pools[0].refresh(3)
    assert 1 <= sum(a is not b for a, b in zip(before, pools[0]._words, strict=True)) <= 3
    assert all(len(e.words) > 1 for e in pools[0].draw(4, sequences=True))


def test_signal_keeps_its_scale_through_the_convolutions_of_the_tower():
    tower = build_tower()
    tokens = tower.subsampling(torch.randn(2, 64, 80), torch.ones(2, 64, dtype=torch.bool))
    assert 0.2 < tokens.std() < 5.0


def test_weights_repeat_with_the_seed():
    first, second, other = build_tower(1), build_tower(1), build_tower(2)
    name = "layers.0.feed_forward1.linear1.weight"
    assert torch.equal(first.state_dict()[name], second.state_dict()[name])
    assert not torch.equal(first.state_dict()[name], other.state_dict()[name])


def test_padding_does_not_change_the_label_scores():
    heads = AudioHeads(8)
    tokens = torch.randn(1, 5, 8)
    padded = torch.cat([tokens, torch.randn(1, 3, 8)], 1)
    alone = heads(tokens, torch.ones(1, 5, dtype=torch.bool)).label
    mask = torch.tensor([[True] * 5 + [False] * 3])
    torch.testing.assert_close(heads(padded, mask).label, alone)


@pytest.mark.parametrize("words", [("seven",), ("one", "two"), (SILENCE,)])
def test_ctc_targets_come_back_from_perfect_scores(words):
    target = spell(words)
    path = [symbol for letter in target for symbol in (letter, 0)]  # a blank after each letter
    scores = torch.nn.functional.one_hot(torch.tensor(path or [0]), 1 + len(LETTERS)).float()
    assert collapse(scores) == target
    spoken = [word for word in words if word != SILENCE]
    assert [WORDS[i - 1] for i in word_ids(words)] == spoken
    assert "".join(LETTERS[i - 1] for i in target) == " ".join(spoken)


def test_labels_are_the_35_words_and_silence():
    assert len(WORDS) == len(set(WORDS)) == 35
    assert LABELS[-1] == SILENCE


def test_loss_is_finite_for_short_clips_silence_and_sequences():
    model = TowerWithHeads(0)
    settings = AudioTraining(steps=1)
    short = [Example(log_mel(tone(0.1)), ("backward",)), Example(log_mel(tone()), (SILENCE,))]
    sequence = [Example(log_mel(tone(1.0)), ("one", "two"))]
    for batch in (short, sequence):
        loss = compute_loss(model, batch, settings)
        loss.backward()
        assert torch.isfinite(loss)
    figures = evaluate(model, {"short": short, "sequence": sequence})
    assert set(figures) == {"short", "sequence"}
    assert model.training


def test_learning_rate_warms_up_and_falls_to_zero():
    settings = AudioTraining(steps=100, warmup_steps=10)
    rates = [schedule_at(step, step / 100, settings) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(rates[9], abs=0.01)
    assert rates[100] == pytest.approx(0.0, abs=1e-6)


def test_a_drawn_batch_is_of_about_one_length():
    pool = ExamplePool(tone_clips(), seed=2, num_words=60, num_sequences=1)
    spreads = [np.ptp([len(e.features) for e in pool.draw(8)]) for _ in range(20)]
    assert np.mean(spreads) < 0.6 * np.ptp([len(e.features) for e in pool._words])


def test_no_two_words_sound_alike_in_a_foreign_accent():
    spoken: dict[str, str] = {}
    for word in WORDS:
        sounds = audio_voices._FOREIGN_SOUNDS[word].split(" ")
        for said in map("".join, product(*(sound.split("|") for sound in sounds))):
            assert spoken.setdefault(said, word) == word
    drawn = audio_voices.foreign_sounds(np.random.default_rng(0), "seven")
    assert spoken[drawn] == "seven"


def test_eight_takes_hear_every_kind_of_voice_and_repeat_with_the_seed():
    first, second = (
        [audio_voices.speaking_command(rng, "three", take) for take in range(8)]
        for rng in (np.random.default_rng(5), np.random.default_rng(5))
    )
    assert first == second
    assert [command[0] for command in first].count("flite") == 1
    assert sum("[[" in command[-2] for command in first) == 3


@given(decay=st.floats(0.1, 0.999))
def test_the_average_moves_by_the_rest_of_its_decay(decay):
    model = torch.nn.BatchNorm1d(3)
    average = build_average(model, decay)
    average.update_parameters(model)  # the first update copies
    with torch.no_grad():
        model.weight += 1.0
        model.running_mean += 1.0
    average.update_parameters(model)
    for moved in (average.module.weight - 1.0, average.module.running_mean):
        torch.testing.assert_close(moved, torch.full((3,), 1 - decay), atol=1e-6, rtol=1e-4)


def test_a_run_from_trained_weights_has_lower_rates_and_is_else_the_same():
    plain = AudioTraining(steps=7)
    continued = plain.continued()
    assert 0 < continued.learning_rate < plain.learning_rate
    assert continued.muon_learning_rate / continued.learning_rate == pytest.approx(
        plain.muon_learning_rate / plain.learning_rate
    )
    assert continued.steps == 7


def test_a_missing_synthesiser_is_named(monkeypatch):
    monkeypatch.setattr(audio_voices.shutil, "which", lambda program: None)
    with pytest.raises(FileNotFoundError, match="synthesiser espeak-ng is not installed"):
        audio_voices.synthetic_clips(["one"])


def test_cached_voices_come_back(tmp_path):
    cache = tmp_path / "voices.npz"
    clips = tone_clips("voices")[:3]
    audio_voices._save(clips, cache)
    restored = audio_voices.synthetic_clips(cache=cache)
    assert [clip.label for clip in restored] == [clip.label for clip in clips]
    for one, other in zip(restored, clips, strict=True):
        np.testing.assert_allclose(one.waveform, other.waveform, atol=1e-4)


@pytest.mark.slow
def test_a_stopped_run_goes_on_and_its_weights_load_into_a_parakeet_encoder(
    recordings, tmp_path, monkeypatch
):
    monkeypatch.setattr("finetune.tiny.train_audio.ExamplePool", _small_pool)
    rows = (recordings / "speech_commands" / "manifest.jsonl").read_text().splitlines()
    first = json.loads(rows[0])
    rows += [json.dumps({**first, "id": f"noise{i}", "label": SILENCE}) for i in range(20)]
    rows = [json.dumps({**json.loads(r), "speaker": None}) if "noise" in r else r for r in rows]
    (recordings / "speech_commands" / "manifest.jsonl").write_text("\n".join(rows))
    out = tmp_path / "out"
    out.mkdir()
    audio_voices._save(tone_clips("voices")[:10], out / "voices.npz")
    for steps in (4, 8):
        settings = AudioTraining(steps=steps, batch_size=4, evaluate_every=4, warmup_steps=2)
        train(recordings, out, settings, resume=True)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 8]
    tower = ParakeetEncoder(build_tower().config)
    tower.load_state_dict(load_file(out / "audio_tower.safetensors"))

    # A run from these weights that learns nothing ends with them.
    still = AudioTraining(steps=1, batch_size=4, learning_rate=0.0, muon_learning_rate=0.0)
    (tmp_path / "next").mkdir()
    (out / "voices.npz").rename(tmp_path / "next" / "voices.npz")
    train(recordings, tmp_path / "next", still, initial=out)
    assert not _changed(tower, out, tmp_path / "next")

    # So does one whose heads are fresh and learn alone.
    (out / "heads.safetensors").unlink()
    for head_steps in (1, 0):
        settings = AudioTraining(steps=1, batch_size=4, warmup_steps=1, head_steps=head_steps)
        train(recordings, tmp_path / "next", settings, initial=out)
        assert bool(_changed(tower, out, tmp_path / "next")) == (head_steps == 0)


def _changed(tower, *folders):
    before, after = (load_file(folder / "audio_tower.safetensors") for folder in folders)
    return [
        name for name, _ in tower.named_parameters() if not torch.equal(before[name], after[name])
    ]


def _small_pool(clips, *, seed):
    return ExamplePool(clips, seed=seed, num_words=8, num_sequences=4)
