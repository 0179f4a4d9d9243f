"""What a preset trains: exactly what it says, in every model, and nothing in a tower unasked."""

from itertools import pairwise

import pytest
import torch

from finetune.presets import PRESETS, find_targets
from finetune.settings import FinetuneSettings, parse_overrides
from finetune.trainable import make_trainable, trained_parameters
from omni.errors import RequestError
from omni.model import OmniModel
from omni.presets import nano_omni_30b_a3b
from omni.quantization import QuantizationConfig, quantize_weights
from tests.support import tiny_omni

OFFICIAL_TRAINED = 55_422_976  # rank 64 on Mamba-2, attention and shared experts


@pytest.fixture(scope="module")
def released() -> OmniModel:
    with torch.device("meta"):
        return OmniModel(nano_omni_30b_a3b())


def test_the_official_targets_have_the_published_count(released: OmniModel) -> None:
    settings = FinetuneSettings(preset="lora-all", lora_rank=64, lora_alpha=128)
    _, _, explanation = make_trainable(released, settings)
    assert explanation.trained == OFFICIAL_TRAINED
    assert sum(row.trained for row in explanation.rows) == OFFICIAL_TRAINED
    assert round(100 * explanation.share, 2) == 0.17


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_the_table_adds_up_and_towers_are_left_alone(preset: str) -> None:
    model = tiny_omni.omni_model()
    wrapped, _, explanation = make_trainable(model, FinetuneSettings(preset=preset, lora_rank=4))
    trained = trained_parameters(wrapped)
    assert trained
    assert sum(row.trained for row in explanation.rows) == explanation.trained
    assert explanation.trained == sum(p.numel() for p in trained.values())
    in_towers = [name for name in trained if "vision_model" in name or "audio_tower" in name]
    assert bool(in_towers) == (preset == "towers")
    assert not any(".gate." in name for name in trained)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_one_step_changes_what_is_trained_and_nothing_else(preset: str) -> None:
    assistant = tiny_omni.assistant()
    model = assistant.model
    wrapped, _, _ = make_trainable(model, FinetuneSettings(preset=preset, lora_rank=4))
    before = {name: value.clone() for name, value in wrapped.state_dict().items()}
    load = assistant.processor.load_media
    media = {
        "image": load(tiny_omni.picture(64, 64, 0)),
        "audio": load(tiny_omni.tone(1.0), sampling_rate=16_000),
        "video": load(tiny_omni.clip(4, 64, 48, 0), fps=2.0),
    }
    turns = [
        {"role": "user", "content": [{"type": kind, kind: media[kind]} for kind in media]},
        {"role": "assistant", "content": "A thing."},
    ]
    trained = trained_parameters(wrapped)
    optimizer = torch.optim.SGD(trained.values(), lr=0.1)
    wrapped.train()
    for _ in range(2):  # the second matrix of an adapter starts at 0, so the first waits one step
        wrapped(**assistant.processor(turns, with_labels=True)).loss.backward()
        optimizer.step()
    changed = {
        name for name, value in wrapped.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed <= set(trained)
    # Registers, position tables and experts that no token chose may keep their values.
    assert len(changed) >= 0.7 * len(trained)


def test_unknown_and_unmatched_names_are_errors() -> None:
    model = tiny_omni.omni_model()
    with pytest.raises(RequestError, match=r"Unknown preset 'lora'.*\n.*lora-attention"):
        find_targets(model, "lora")
    with pytest.raises(RequestError, match="both whole and through an adapter"):
        find_targets(model, "full+lora-all")
    text = {**tiny_omni.TEXT, "hybrid_override_pattern": "ME"}
    text.pop("layers_block_type", None)
    plain = tiny_omni.omni_model(text_config=text)
    with pytest.raises(RequestError, match="matches nothing in this model"):
        find_targets(plain, "lora-attention")


def test_presets_join() -> None:
    model = tiny_omni.omni_model()
    wrapped, _, explanation = make_trainable(
        model, FinetuneSettings(preset="projectors+lora-mamba")
    )
    kinds = {row.how for row in explanation.rows}
    assert kinds == {"whole", "rank 16"}
    assert any("multi_modal_projector" in name for name in trained_parameters(wrapped))


def test_settings_are_read_from_words() -> None:
    words = ["learning_rate=1e-4", "packing=false", "max_steps=7", "reduction=video=evs(0.5)"]
    settings = FinetuneSettings().changed(parse_overrides(words))
    assert settings.learning_rate == 1e-4
    assert settings.packing is False
    assert settings.max_steps == 7
    assert settings.reduction == {"video": "evs(0.5)"}
    with pytest.raises(RequestError, match=r"Unknown setting 'learn_rate'.*learning_rate"):
        settings.changed({"learn_rate": "1"})
    with pytest.raises(RequestError, match="expected a float"):
        settings.changed({"learning_rate": "fast"})
    with pytest.raises(RequestError, match="expected one of cosine, wsd, constant"):
        settings.changed({"schedule": "linear"})
    with pytest.raises(RequestError, match="key=value"):
        parse_overrides(["fast"])


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "constant"])
def test_a_schedule_warms_up_and_never_exceeds_its_rate(schedule: str) -> None:
    settings = FinetuneSettings(schedule=schedule, warmup_steps=5, learning_rate=0.3)
    rates = [settings.rate_at(step, 50) for step in range(50)]
    assert rates[:5] == pytest.approx([0.06, 0.12, 0.18, 0.24, 0.3])
    assert max(rates) == pytest.approx(0.3)
    assert all(a >= b - 1e-12 for a, b in pairwise(rates[5:]))
    assert (rates[-1] < 0.05) == (schedule != "constant")


def test_recomputing_layers_takes_less_memory_and_half_the_tokens_take_half():
    def activations(**changes):
        model = tiny_omni.omni_model()
        return make_trainable(model, FinetuneSettings(**changes))[2].activation_bytes

    whole = activations(max_length=4096)
    assert activations(max_length=4096, gradient_checkpointing=True) < whole
    assert activations(max_length=2048) == pytest.approx(whole / 2, rel=0.01)
    assert activations(max_length=4096, mixed_precision="bf16") < whole


@pytest.mark.parametrize("preset", ["projectors", "full", "lora-attention"])
def test_a_quantised_model_is_refused(preset: str) -> None:
    model = quantize_weights(tiny_omni.omni_model(), QuantizationConfig(bits=8))
    with pytest.raises(RequestError, match="int8 or int4 weights, which are not trained"):
        make_trainable(model, FinetuneSettings(preset=preset))
