"""Vision transformers of timm as towers."""

import pytest
import timm
import torch
from timm.layers import HybridEmbed, resample_abs_pos_embed
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

from encoders.vision.preprocessing import patchify
from encoders.vision.timm_tower import TimmTower

SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}


def build_vit(**changes) -> VisionTransformer:
    settings = SMALL | {"num_classes": 0, "reg_tokens": 2, "dynamic_img_size": True} | changes
    return VisionTransformer(**settings)


@pytest.mark.parametrize(
    "vit",
    [
        build_vit(),
        build_vit(class_token=False, global_pool="avg"),
        build_vit(no_embed_class=True),
        Eva(**SMALL, num_classes=0, dynamic_img_size=True, use_rot_pos_emb=True),
    ],
    ids=["registers", "no class token", "positions without prefix", "eva"],
)
def test_images_in_one_pass_are_as_if_alone(vit):
    tower = TimmTower(vit).eval().requires_grad_(False)
    grids = [(2, 3), (4, 4), (2, 3), (5, 2)]
    patches = torch.randn(sum(h * w for h, w in grids), 48)
    together = tower.encode_images(patches, torch.tensor(grids))
    alone = [
        tower.encode_images(rows, torch.tensor([grid]))
        for rows, grid in zip(patches.split([h * w for h, w in grids]), grids, strict=True)
    ]
    assert together.shape == (len(patches), tower.hidden_size)
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-5)


def test_the_position_table_is_resized_to_the_grid_and_the_prefix_dropped():
    tower = TimmTower(build_vit(depth=0, norm_layer=torch.nn.Identity)).eval()
    images = torch.randn(1, 3, 8, 24)
    rows = tower.encode_images(patchify(images, 4)[0], torch.tensor([[2, 6]]))
    vit = tower.vit
    positions = resample_abs_pos_embed(
        vit.pos_embed, new_size=[2, 6], old_size=[4, 4], num_prefix_tokens=3
    )[:, 3:]
    expected = vit.patch_embed.proj(images).flatten(2).transpose(1, 2) + positions
    torch.testing.assert_close(rows, expected[0])


def test_the_native_size_gives_what_timm_gives():
    vit = build_vit().eval()
    images = torch.randn(2, 3, 16, 16)
    expected = vit.forward_features(images)[:, vit.num_prefix_tokens :]
    rows = TimmTower(vit).encode_images(
        patchify(images, 4).flatten(0, 1), torch.tensor([[4, 4]] * 2)
    )
    torch.testing.assert_close(rows, expected.flatten(0, 1))


def test_a_name_builds_a_tower_with_its_statistics_and_offline(tmp_path):
    tower = TimmTower("test_vit")
    assert (tower.hidden_size, tower.patch_size) == (64, 16)
    assert tower.image_mean == timm.create_model("test_vit").pretrained_cfg["mean"]
    assert len(tower.image_std) == 3

    torch.save(timm.create_model("test_vit", num_classes=0).state_dict(), tmp_path / "vit.pth")
    loaded = TimmTower("test_vit", checkpoint=tmp_path / "vit.pth")
    saved = torch.load(tmp_path / "vit.pth", weights_only=True)
    assert all(torch.equal(saved[name], value) for name, value in loaded.vit.state_dict().items())


@pytest.mark.parametrize("name", ["test_vit", "test_vit2", "test_vit3"])
def test_the_classifier_of_a_checkpoint_changes_nothing(name, tmp_path):
    whole = timm.create_model(name, num_classes=7)
    state = whole.state_dict() | {"head_dist.weight": torch.zeros(7, 64)}
    assert any(key.startswith("head.") for key in state)
    torch.save(state, tmp_path / "whole.pth")
    bare = {key: value for key, value in state.items() if not key.startswith("head")}
    torch.save({"state_dict": bare}, tmp_path / "bare.pth")
    for file in ("whole.pth", "bare.pth"):
        loaded = TimmTower(name, checkpoint=tmp_path / file).vit.state_dict()
        assert loaded.keys() == bare.keys()
        assert all(torch.equal(bare[key], value) for key, value in loaded.items())


def test_checkpoints_of_another_model_are_refused(tmp_path):
    state = timm.create_model("test_vit").state_dict()
    partial = {key: value for key, value in state.items() if key != "cls_token"}
    torch.save(partial, tmp_path / "partial.pth")
    with pytest.raises(ValueError, match=r"'test_vit': missing are cls_token, unknown none"):
        TimmTower("test_vit", checkpoint=tmp_path / "partial.pth")
    torch.save(state | {"header.weight": torch.zeros(1)}, tmp_path / "more.pth")
    with pytest.raises(ValueError, match=r"missing are none, unknown header\.weight"):
        TimmTower("test_vit", checkpoint=tmp_path / "more.pth")
    with pytest.raises(FileNotFoundError, match=r"no file '.*none\.pth'; expected the weights of"):
        TimmTower("test_vit", checkpoint=tmp_path / "none.pth")


def test_hybrids_are_refused():
    def embed(**settings) -> HybridEmbed:
        network = torch.nn.Conv2d(3, 8, 3, stride=2, padding=1)
        return HybridEmbed(backbone=network, proj=True, **settings)

    with pytest.raises(ValueError, match=r"VisionTransformer is a hybrid: .* through a Conv2d"):
        TimmTower(build_vit(embed_layer=embed))


def test_no_images_give_no_rows():
    none = TimmTower(build_vit()).encode_images(torch.zeros(0, 48), torch.zeros(0, 2).long())
    assert none.shape == (0, 16)


def test_rows_that_do_not_match_are_refused():
    tower = TimmTower(build_vit())
    with pytest.raises(ValueError, match=r"1 images of 4 patches with 48 values .* \(3, 48\)"):
        tower.encode_images(torch.zeros(3, 48), torch.tensor([[2, 2]]))


@pytest.mark.parametrize(
    ("vit", "message"),
    [
        ("test_vitt", "no model named 'test_vitt'; did you mean 'test_vit'"),
        ("test_resnet", "'test_resnet' is not a vision transformer"),
        (torch.nn.Linear(2, 2), "Linear is not a vision transformer"),
        (build_vit(dynamic_img_size=False), "VisionTransformer takes one image size only"),
    ],
)
def test_models_that_are_no_tower_are_refused(vit, message):
    with pytest.raises(ValueError, match=message):
        TimmTower(vit)
