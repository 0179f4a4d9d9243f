"""FLOPs from shapes against PyTorch's own counter over real passes."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from omni import presets
from omni.backbone import moe, products
from omni.backbone.products import prefers_onednn
from omni.flops import prefill_flops, tower_flops
from omni.generation import continue_prompt
from omni.media import load_media
from omni.options import MediaOptions
from tests.support import tiny_omni

aten = torch.ops.aten


def attention_flops(q: Any, k: Any, v: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Like PyTorch's formula for its other attention kernels; it has none for this one."""
    return sdpa_flop_count(q, k, v)


def linear_flops(x: Any, weight: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """A multiplication and an addition for each weight and row."""
    return 2 * math.prod(x) * weight[0]


def counted(run: Any) -> FlopCounterMode:
    kernels = {aten._scaled_dot_product_flash_attention_for_cpu: attention_flops}
    if prefers_onednn():
        kernels[torch.ops.mkldnn._linear_pointwise] = linear_flops
    with FlopCounterMode(display=False, custom_mapping=kernels) as counter, torch.no_grad():
        run()
    return counter


@pytest.fixture(autouse=True)
def unfilled(monkeypatch):
    """Without the rows that fill up experts' stretches: they are no work of the request.

    And with all products by operators that the counter knows.
    """
    monkeypatch.setattr(moe, "STRETCH_STEP", 1)
    monkeypatch.setattr(moe, "STRETCH_SHARE", 60)
    monkeypatch.setattr(products, "MAX_WRITTEN_OUT", 0)


@pytest.fixture(scope="module")
def assistant():
    return tiny_omni.assistant()


def item_of(assistant, marker: str, medium: Any, spec: str = "identity"):
    """An item whose windows are made already, so that only the tower and the projector run."""
    options = MediaOptions(reduction={"image": spec, "video": spec})
    [item] = assistant.processor.from_text(marker, [medium], options=options).media
    return replace(item, windows=list(item.windows))


@pytest.mark.parametrize("spec", ["identity", "evs(0.5)", "tome(0.4)"])
@pytest.mark.parametrize("kind", ["image", "video"])
def test_the_vision_tower_is_counted_exactly(assistant, kind: str, spec: str) -> None:
    media = {
        "image": load_media(tiny_omni.picture(40, 60)),
        "video": load_media(tiny_omni.clip(15, 36, 64), fps=8.0),
    }
    item = item_of(assistant, f"<{kind}>", media[kind], spec)
    found = counted(lambda: assistant.model.encode([item])).get_total_flops()
    assert tower_flops(assistant.model.config, item) == found


@pytest.mark.parametrize("seconds", [2.56, 30, 41])
def test_the_audio_tower_is_counted(assistant, seconds: float) -> None:
    sound = load_media(tiny_omni.tone(seconds), sampling_rate=16_000)
    item = item_of(assistant, "<so_embedding>", sound)
    found = counted(lambda: assistant.model.encode([item])).get_total_flops()
    # Frames are counted in whole tokens of 8.
    assert tower_flops(assistant.model.config, item) == pytest.approx(found, rel=1e-3)


@pytest.mark.parametrize("length", [1, 7, 64, 66, 300])
def test_prefill_is_counted(assistant, length: int) -> None:
    model = assistant.model
    text = model.config.text_config
    ids = torch.full((1, length), 40)
    counter = counted(lambda: model(input_ids=ids, logits_to_keep=1))
    found = counter.get_total_flops()
    # The counter takes attention for full, and our convolution is no convolution to it.
    heads = text.num_attention_heads * text.head_dim
    channels = text.mamba_num_heads * text.mamba_head_dim + 2 * text.n_groups * text.ssm_state_size
    unseen = 4 * heads * (length * length - length * (length + 1) // 2)
    convolution = 2 * length * channels * text.conv_kernel
    layers = text.layer_types
    found -= layers.count("full_attention") * unseen
    found += layers.count("linear_attention") * convolution
    if length == 1:  # a lone token's experts are weighted by a product, otherwise by sums
        found -= layers.count("moe") * 2 * text.num_experts_per_tok * text.hidden_size
    assert prefill_flops(model.config, length) == found


@pytest.mark.parametrize(("past", "length"), [(1, 7), (90, 40), (64, 66)])
def test_reading_on_behind_a_cache_is_counted(assistant, past: int, length: int) -> None:
    model = assistant.model
    text = model.config.text_config
    cache = model.new_cache(past + length)
    with torch.no_grad():
        model(input_ids=torch.full((1, past), 40), cache=cache, use_cache=True)
    ids = torch.full((1, length), 41)
    found = counted(lambda: continue_prompt(model, cache, ids)).get_total_flops()
    # As above: attention is counted in full, the convolution not at all.
    heads = text.num_attention_heads * text.head_dim
    channels = text.mamba_num_heads * text.mamba_head_dim + 2 * text.n_groups * text.ssm_state_size
    layers = text.layer_types
    found -= layers.count("full_attention") * 4 * heads * (length * (length - 1) // 2)
    found += layers.count("linear_attention") * 2 * length * channels * text.conv_kernel
    assert prefill_flops(model.config, length, past=past) == found


def test_a_token_of_the_released_model_costs_two_flops_a_active_parameter() -> None:
    config = presets.get("nano-omni-30b-a3b")
    long, longer = 64 * 1_000, 64 * 1_001
    per_token = (prefill_flops(config, longer) - prefill_flops(config, long)) / 64
    text = config.text_config
    attention = 4 * long * text.num_attention_heads * text.head_dim * 6  # six attention layers
    # 3.58e9 active parameters, embeddings and head (0.70e9) not among those of a prompt's token.
    assert per_token - attention == pytest.approx(2 * 2.88e9, rel=0.05)
