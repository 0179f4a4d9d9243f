"""The recorded attention of the class tokens is that of the materialised attention matrix."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from encoders import RadioTower, watch_class_attention
from encoders.vision.attention import class_attention
from tests.encoders.vision.test_radio import build_config, rows_for


@pytest.fixture
def tower() -> RadioTower:
    torch.manual_seed(0)
    tower = RadioTower(build_config()).eval().requires_grad_(False)
    for parameter in tower.parameters():
        parameter.normal_()
    return tower


def watched(tower: RadioTower, grids: list[tuple[int, int]], patches: torch.Tensor):
    with watch_class_attention(tower) as seen:
        tower.encode_images(patches, torch.tensor(grids))
    return torch.cat(seen).split([h * w for h, w in grids])


@pytest.mark.parametrize("grid", [(4, 6), (2, 2)])
def test_it_equals_the_last_block_of_eager_attention(tower, grid):
    patches = rows_for([grid])
    (received,) = watched(tower, [grid], patches)
    tower.set_attn_implementation("eager")
    out = tower(patches, image_grid_hw=torch.tensor([grid]), output_attentions=True)
    config = tower.config
    matrix = out.attentions[-1][0]  # (heads, T, T)
    expected = matrix[:, : config.num_cls_tokens, config.num_summary_tokens :].mean((0, 1))
    torch.testing.assert_close(received, expected)
    assert received.std() > 1e-3  # else everything would be equal


def test_packed_pictures_are_as_if_alone(tower):
    grids = [(4, 6), (2, 8), (4, 4), (4, 6)]
    patches = rows_for(grids)
    together = watched(tower, grids, patches)
    parts = patches.split([h * w for h, w in grids])
    for grid, rows, received in zip(grids, parts, together, strict=True):
        torch.testing.assert_close(watched(tower, [grid], rows)[0], received)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_does_not_change_it(tower, dtype):
    hidden_states = torch.randn(3, 40, tower.config.hidden_size).to(dtype)
    attention = tower.encoder.layer[-1].attention
    expected = class_attention(attention, hidden_states.float(), 3)
    with torch.autocast("cpu", torch.bfloat16):
        received = class_attention(attention, hidden_states, 3)
    assert torch.equal(received, expected)


def test_a_tower_is_watched_under_autocast_in_any_dtype(tower):
    for dtype in (torch.float32, torch.bfloat16):
        tower.to(dtype)
        with torch.autocast("cpu", torch.bfloat16):
            (received,) = watched(tower, [(4, 6)], rows_for([(4, 6)]))
        assert received.dtype == torch.float32
        assert received.isfinite().all()


def test_tubelets_are_watched_and_nothing_stays_behind(tower):
    tubelets = rows_for([(4, 4)] * 3, tower.config.video_patch_dim)
    with watch_class_attention(tower) as seen:
        before = tower.encode_video(tubelets, (4, 4))
    assert torch.cat(seen).shape == (48,)
    torch.testing.assert_close(tower.encode_video(tubelets, (4, 4)), before)
    assert torch.cat(seen).shape == (48,)


def test_another_thread_that_runs_the_tower_is_not_watched(tower):
    grid = (4, 6)
    patches = rows_for([grid])
    with watch_class_attention(tower) as seen, ThreadPoolExecutor(1) as other:
        other.submit(tower.encode_images, patches, torch.tensor([grid])).result()
        assert seen == []
        tower.encode_images(patches, torch.tensor([grid]))
        assert len(seen) == 1


def test_a_tower_without_class_tokens_is_refused():
    tower = RadioTower(build_config(num_cls_tokens=0, summary_idxs=[]))
    with pytest.raises(ValueError, match="no class token"), watch_class_attention(tower):
        pass
