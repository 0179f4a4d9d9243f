"""The C-RADIO tower over patch rows: laws of packing, windows and video."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import RadioConfig
from transformers.models.radio.modeling_radio import RadioModel

from encoders.vision import radio
from encoders.vision.radio import RadioTower

# Rows of an item come from other matrix sizes when it runs alone, so sums may be ordered anew.
REORDERED_SUMS = {"rtol": 1e-5, "atol": 1e-5}


def build_config(**changes) -> RadioConfig:
    values = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": 2,
        "max_img_size": 16,
        "video_temporal_patch_size": 2,
        "initializer_range": 0.2,
    }
    return RadioConfig(**(values | changes))


@pytest.fixture
def tower() -> RadioTower:
    return RadioTower(build_config()).eval().requires_grad_(False)


def rows_for(grids: list[tuple[int, int]], width: int = 12) -> torch.Tensor:
    return torch.randn(sum(h * w for h, w in grids), width)


def test_a_state_dict_of_transformers_loads_strictly_with_and_without_conditioner():
    model = RadioModel(build_config())
    tower = RadioTower(build_config())
    tower.load_state_dict(model.state_dict(), strict=True)
    model.make_preprocessor_external()
    tower.load_state_dict(model.state_dict(), strict=True)
    assert tower.state_dict().keys() == model.state_dict().keys()


def test_the_released_size_has_the_published_number_of_parameters():
    with torch.device("meta"):
        tower = RadioTower(RadioConfig(video_temporal_patch_size=2))
    layer_scales = 81_920  # added by transformers, all ones
    assert sum(p.numel() for p in tower.parameters()) == 653_611_520 + layer_scales


def test_other_unknown_parameters_are_still_refused(tower):
    state = tower.state_dict() | {"input_conditioner.scale": torch.ones(1)}
    with pytest.raises(RuntimeError, match=r"input_conditioner\.scale"):
        tower.load_state_dict(state)


@pytest.mark.parametrize("grids", [[(4, 6), (2, 8), (4, 4), (4, 6)], [(4, 6)] * 3])
def test_images_in_one_pass_are_as_if_alone(tower, grids):
    patches = rows_for(grids)
    together = tower.encode_images(patches, torch.tensor(grids))
    alone = [
        tower.encode_images(rows, torch.tensor([grid]))
        for rows, grid in zip(patches.split([h * w for h, w in grids]), grids, strict=True)
    ]
    assert together.shape == (len(patches), 16)
    torch.testing.assert_close(together, torch.cat(alone), **REORDERED_SUMS)


def positions_of(tower: RadioModel, grid: tuple[int, int], dtype=torch.float32) -> torch.Tensor:
    return tower.embeddings._interpolate_position_embedding(grid, dtype)


# Bits of the slow reference may differ in other versions of PyTorch: it computes the scale of the
# square as a quotient of sides, we hand over its inverse. Measured: 0.
SAME_SCALE = {"rtol": 0, "atol": 2e-6}


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([torch.float32, torch.bfloat16]))
def test_positions_are_those_of_the_square_that_transformers_makes(rows, columns, dtype):
    torch.manual_seed(0)
    slow = RadioModel(build_config())
    tower = RadioTower(build_config())
    slow.embeddings.load_state_dict(tower.embeddings.state_dict())
    ours, theirs = (positions_of(model, (rows, columns), dtype) for model in (tower, slow))
    torch.testing.assert_close(ours, theirs, **SAME_SCALE)
    weight = torch.randn(ours.shape)
    for positions in (ours, theirs):
        (positions * weight).sum().backward()
    grads = [model.embeddings.position_embedding.grad for model in (tower, slow)]
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-5)


class LargestTensor(TorchDispatchMode):
    """Records how many numbers the largest result of any operation has."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


@pytest.mark.parametrize("grid", [(1, 500), (500, 1), (8, 3000), (3000, 8), (40, 40), (1, 1)])
def test_a_strip_costs_no_more_than_its_patches_and_the_table(tower, grid):
    with LargestTensor() as largest, torch.no_grad():
        positions = positions_of(tower, grid)
    row_more = positions.numel() + max(grid) * tower.config.hidden_size
    assert largest.numel <= max(row_more, tower.embeddings.position_embedding.numel())


@pytest.mark.parametrize("grids", [[(4, 6), (2, 8), (4, 4), (4, 6)], [(4, 6)] * 3])
def test_the_window_does_not_change_the_result(tower, grids, monkeypatch):
    patches, sizes = rows_for(grids), torch.tensor(grids)
    whole = tower.encode_images(patches, sizes)
    for limit in (1, 40, 60):
        monkeypatch.setattr(radio, "MAX_PATCHES_PER_PASS", limit)
        windows = tower.encode_images(patches, sizes)
        torch.testing.assert_close(windows, whole, **REORDERED_SUMS)


def test_tubelets_are_encoded_as_if_alone_in_any_window(tower, monkeypatch):
    tubelets = rows_for([(4, 6)] * 5, width=24)
    whole = tower.encode_video(tubelets, (4, 6))
    alone = torch.cat([tower.encode_video(rows, (4, 6)) for rows in tubelets.split(24)])
    monkeypatch.setattr(radio, "MAX_PATCHES_PER_PASS", 50)
    windows = tower.encode_video(tubelets, (4, 6))
    torch.testing.assert_close(whole, alone, **REORDERED_SUMS)
    torch.testing.assert_close(whole, windows, **REORDERED_SUMS)


def test_video_has_an_embedder_of_its_own(tower):
    with torch.no_grad():
        tower.embeddings.video_patch_projection.weight.zero_()
    black, white = torch.zeros(24, 24), torch.ones(24, 24)
    assert torch.equal(tower.encode_video(black, (4, 6)), tower.encode_video(white, (4, 6)))


def test_the_grid_is_seen_not_only_the_number_of_patches(tower):
    patches = rows_for([(4, 6)])
    lying = tower.encode_images(patches, torch.tensor([[4, 6]]))
    standing = tower.encode_images(patches, torch.tensor([[6, 4]]))
    assert not torch.allclose(lying, standing, atol=1e-3)


@pytest.mark.parametrize("grids", [[(2, 4), (2, 2)], [(2, 4)] * 2])
def test_one_class_token_is_enough(grids):
    # transformers needs two for the summary of a batch, which nobody here asks for.
    tower = RadioTower(build_config(num_cls_tokens=1, num_registers=2))
    patches = rows_for(grids)
    assert tower.encode_images(patches, torch.tensor(grids)).shape == (len(patches), 16)


def test_no_images_give_no_rows(tower):
    none = tower.encode_images(torch.zeros(0, 12), torch.zeros(0, 2, dtype=torch.long))
    assert none.shape == (0, 16)
    assert tower.encode_video(torch.zeros(0, 24), (2, 2)).shape == (0, 16)


def test_rows_are_cast_to_the_dtype_of_the_tower(tower):
    tower.to(torch.bfloat16)
    grids = torch.tensor([[2, 2], [2, 4]])
    assert tower.encode_images(torch.randn(12, 12), grids).dtype == torch.bfloat16
    assert tower.encode_video(torch.randn(8, 24), (2, 4)).dtype == torch.bfloat16


def test_gradients_reach_both_embedders():
    tower = RadioTower(build_config())
    tower.encode_images(rows_for([(2, 2), (2, 4)]), torch.tensor([[2, 2], [2, 4]])).sum().backward()
    tower.encode_video(rows_for([(2, 2)], width=24), (2, 2)).sum().backward()
    assert tower.embeddings.patch_projection.weight.grad.abs().sum() > 0
    assert tower.embeddings.video_patch_projection.weight.grad.abs().sum() > 0


def test_rows_that_do_not_match_are_refused(tower):
    grids = torch.tensor([[2, 4]])
    with pytest.raises(ValueError, match="grids of 1 images hold 8 patches, but 7 rows"):
        tower.encode_images(torch.zeros(7, 12), grids)
    with pytest.raises(ValueError, match="Rows have 24 values, but this tower takes 12"):
        tower.encode_images(torch.zeros(8, 24), grids)
    with pytest.raises(ValueError, match="Rows have 12 values, but this tower takes 24"):
        tower.encode_video(torch.zeros(8, 12), (2, 4))
    with pytest.raises(ValueError, match="7 rows do not fill whole tubelets of 2x4"):
        tower.encode_video(torch.zeros(7, 24), (2, 4))


def test_a_tower_without_video_embedder_says_so():
    tower = RadioTower(build_config(video_temporal_patch_size=None))
    with pytest.raises(ValueError, match="no video embedder"):
        tower.encode_video(torch.zeros(8, 24), (2, 4))
