"""The vision tower's training: targets sit where they should, and a run can be cut and resumed."""

import io
import json
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import RadioModel

from finetune.tiny import train_vision, vision_batches, vision_data
from finetune.tiny.fonts import find_fonts
from finetune.tiny.printed import CHARACTERS, Line
from finetune.tiny.train_vision import (
    VisionTraining,
    edit_distance,
    evaluate,
    head_scores,
    total_loss,
    train,
)
from finetune.tiny.vision_batches import BatchSizes, VisionBatches
from finetune.tiny.vision_data import (
    IGNORE,
    PHOTO_CLASSES,
    cifar_arrays,
    image_grid,
    lines,
    mnist_arrays,
    random_tubelets,
    spell,
    symbols,
    video_grid,
)
from finetune.tiny.vision_tower import Part, VisionHeads, build_tower, encode, fold, tower_config

SMALL = BatchSizes(photo=2, line=2, receipt=0, block=1, digit=2, clip=2, still=1, scene=1, events=2)


@pytest.fixture(scope="module", autouse=True)
def fonts_are_installed():
    for split in ("train", "validation"):
        try:
            find_fonts(split)
        except FileNotFoundError:
            pytest.skip("fonts for printed lines are not installed")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder laid out as the real data: 40 photographs, 60 digits, all random."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    (folder / "cifar10").mkdir()
    with zipfile.ZipFile(folder / "cifar10" / "images.zip", "w") as archive:
        for i in range(40):
            buffer = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(buffer, "JPEG")
            archive.writestr(f"{PHOTO_CLASSES[i % 10]}/{i:04d}.jpg", buffer.getvalue())
    (folder / "mnist5k").mkdir()
    np.savez(
        folder / "mnist5k" / "mnist_train.npz",
        images=rng.integers(0, 256, (60, 28, 28), dtype=np.uint8),
        labels=np.arange(60, dtype=np.uint8) % 10,
    )
    return folder


@pytest.fixture
def small_tower():
    config = tower_config()
    config.num_hidden_layers = 1
    return build_tower(config).eval()


def printed(text: str, width: int = 128, height: int = 64) -> Line:
    """A line whose characters are 16 pixels wide, from x = 32, between rows 16 and 48."""
    return Line(
        image=np.full((height, width, 3), 255, dtype=np.uint8),
        text=text,
        edges=32.0 + 16.0 * np.arange(len(text) + 1),
        top=16.0,
        bottom=48.0,
    )


def test_small_pictures_get_the_grids_of_the_product():
    assert image_grid(32, 32) == (8, 8)
    assert image_grid(28, 28) == (8, 8)
    assert image_grid(144, 576) == (10, 36)
    assert image_grid(1024, 1024) == (32, 32)
    assert video_grid(96, 96) == (8, 8)


def test_validation_pictures_are_never_trained_on(data):
    for load in (cifar_arrays, mnist_arrays):
        trained, held_out = load(data, "train")[0], load(data, "validation")[0]
        assert len(held_out) > 0
        seen = {picture.tobytes() for picture in trained}
        assert not any(picture.tobytes() in seen for picture in held_out)


def test_a_step_sees_the_same_batch_whenever_it_is_asked_for(data):
    batches = VisionBatches(data, seed=0, num_steps=9, sizes=SMALL)
    for first, second in zip(batches[7], batches[7], strict=True):
        assert torch.equal(first.part.patches, second.part.patches)
        assert all(torch.equal(first.targets[k], second.targets[k]) for k in first.targets)
    assert not torch.equal(batches[7][0].part.patches, batches[8][0].part.patches)


def test_each_photograph_comes_once_an_epoch():
    order = vision_batches._epoch_order(0, 10, 0, 20)
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10))
    resumed = vision_batches._epoch_order(0, 10, 7, 6)
    assert list(resumed) == list(order[7:13])


def test_places_of_a_line_name_the_character_that_stands_there():
    task = lines([printed("A1")])
    rows, columns = task.part.grid
    assert (rows, columns) == (6, 12)  # 64 x 128 pixels are enlarged to 96 x 192
    symbol = task.targets["symbol"][0].reshape(rows, columns, 2)
    index = task.targets["index"][0].reshape(rows, columns, 2)
    middle = rows // 2
    # 24 pixels a character after resizing, from x = 48, in subcolumns of 8 pixels
    expected = [0] * 6 + [1] * 3 + [2] * 3 + [0] * 12
    assert index[middle].flatten().tolist() == expected
    names = [0, *symbols("A1")]
    assert symbol[middle].flatten().tolist() == [names[i] for i in expected]
    assert index[0].unique().tolist() == [0]


def test_rows_that_text_only_touches_count_for_nothing():
    line = printed("A")._replace(top=14.0, bottom=34.0)  # touches row 0 of 4 by 2 pixels of 16
    _, index = vision_data._place_targets(line, (4, 8))
    by_row = index.reshape(4, 16)
    assert set(by_row[0]) == {IGNORE}
    assert set(by_row[1]) == {0, 1}
    assert set(by_row[2]) == {IGNORE}
    assert set(by_row[3]) == {0}


def test_spelling_reverses_symbols_and_stops_at_nothing():
    assert spell([*symbols(CHARACTERS[:12])]) == CHARACTERS[:12]
    assert spell([*symbols("ab"), 0, 5]) == "ab"


def test_tubelet_rows_hold_the_first_frame_then_the_second():
    rng = np.random.default_rng(0)
    task = random_tubelets(rng, 3)
    assert task.part.patches.shape[-1] == 2 * 768
    first, second = task.part.patches.chunk(2, dim=-1)
    moving = task.targets["direction"] != 8
    changed = (first - second).abs().flatten(1).amax(1) > 0.5
    assert torch.equal(changed[moving], moving[moving])


def test_the_dense_pass_equals_the_packed_forward_of_the_tower(small_tower):
    parts = [Part(torch.randn(2, 32, 768), (4, 8)), Part(torch.randn(1, 32, 768), (4, 8))]
    with torch.no_grad():
        found = torch.cat(encode(small_tower, parts))
        packed = torch.cat([part.patches for part in parts]).flatten(0, 1)
        expected = small_tower(packed, image_grid_hw=torch.tensor([[4, 8]] * 3)).features
    # Same float32 operations in another batch shape; measured 0 to 2e-6.
    torch.testing.assert_close(found.flatten(0, 1), expected, atol=2e-5, rtol=0)


def test_pictures_and_tubelets_of_one_grid_do_not_mix(small_tower):
    picture, tubelet = torch.randn(2, 16, 768), torch.randn(3, 16, 1536)
    with torch.no_grad():
        together = encode(small_tower, [Part(picture, (4, 4)), Part(tubelet, (4, 4))])
        alone = encode(small_tower, [Part(tubelet, (4, 4))])[0]
    torch.testing.assert_close(together[1], alone, atol=2e-5, rtol=0)


def test_folding_joins_two_by_two_neighbours():
    features = torch.arange(16.0).reshape(1, 16, 1)
    assert fold(features, (4, 4))[0].tolist() == [
        [0, 1, 4, 5],
        [2, 3, 6, 7],
        [8, 9, 12, 13],
        [10, 11, 14, 15],
    ]


def test_every_parameter_but_the_unused_ones_gets_a_gradient(data, small_tower):
    heads = VisionHeads(small_tower.config.hidden_size)
    tasks = VisionBatches(data, seed=0, num_steps=1, sizes=SMALL)[0]
    total_loss(head_scores(small_tower, heads, tasks), tasks).backward()
    named = [*small_tower.named_parameters(), *heads.named_parameters()]
    assert [name for name, p in named if p.grad is None] == []


@pytest.fixture
def small_training(data, monkeypatch):
    """Training of a tower of one layer, measured on a single batch."""
    tower_config_of_module = train_vision.tower_config

    def one_layer():
        small = tower_config_of_module()
        small.num_hidden_layers = 1
        return small

    monkeypatch.setattr(train_vision, "tower_config", one_layer)
    held_out = VisionBatches(data, seed=9, num_steps=1, sizes=SMALL)[0]
    monkeypatch.setattr(train_vision, "validation_tasks", lambda *_: held_out)


@pytest.mark.usefixtures("small_training")
@pytest.mark.parametrize("has_heads", [False, True])
def test_only_fresh_heads_learn_alone_on_a_trained_tower(data, tmp_path, has_heads):
    settings = VisionTraining(steps=1, sizes=SMALL, warmup_steps=1, num_workers=0, head_steps=2)
    train(data, tmp_path / "first", settings)
    if not has_heads:
        (tmp_path / "first" / "heads.safetensors").unlink()
    train(data, tmp_path / "next", settings, initial=tmp_path / "first")
    before, after = (
        load_file(tmp_path / run / "vision_model.safetensors") for run in ("first", "next")
    )
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert bool(changed) == has_heads


@pytest.mark.usefixtures("small_training")
def test_a_cut_and_resumed_run_ends_where_an_unbroken_one_does(data, tmp_path, monkeypatch):
    settings = VisionTraining(
        steps=2, sizes=SMALL, warmup_steps=1, save_every=1, evaluate_every=1, num_workers=0
    )
    train(data, tmp_path / "whole", settings)

    saves = []
    original = train_vision._save

    def save_then_fail(*arguments):
        original(*arguments)
        saves.append(arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train_vision, "_save", save_then_fail)
        with pytest.raises(KeyboardInterrupt):
            train(data, tmp_path / "cut", settings)
    assert len(saves) == 1
    train(data, tmp_path / "cut", settings, resume=True)

    for name in ("vision_model.safetensors", "heads.safetensors"):
        whole, cut = (load_file(tmp_path / run / name) for run in ("whole", "cut"))
        assert all(torch.equal(whole[key], cut[key]) for key in whole)

    reference = RadioModel(train_vision.tower_config())
    reference.make_preprocessor_external()
    reference.load_state_dict(load_file(tmp_path / "whole" / "vision_model.safetensors"))
    report = json.loads((tmp_path / "whole" / "metrics.json").read_text())
    assert report["samples"]["photo"] == 4
    assert 0 <= report["validation"]["photo/photo"] <= 1


def test_a_perfect_reader_has_no_character_errors(monkeypatch):
    task = lines([printed("A1"), printed("bcd")])

    def perfect(_tower, _heads, tasks):
        found = {
            name: torch.nn.functional.one_hot(target.clamp(min=0), 78).float()
            for name, target in tasks[0].targets.items()
        }
        return [found]

    monkeypatch.setattr(train_vision, "head_scores", perfect)
    figures = evaluate(None, None, [task], bfloat16=False)
    assert figures["line/character_error"] == 0
    assert figures["line/exact"] == figures["line/symbol"] == figures["line/index"] == 1


@pytest.mark.parametrize(
    ("found", "expected", "edits"),
    [
        ("", "abc", 3),
        ("abc", "abc", 0),
        ("axc", "abc", 1),
        ("ab", "abc", 1),
        ("kitten", "sitting", 3),
    ],
)
def test_edit_distance_counts_edits(found, expected, edits):
    assert edit_distance(found, expected) == edits
    assert edit_distance(expected, found) == edits


def test_learning_rate_warms_up_and_ends_at_nothing():
    settings = VisionTraining(steps=100, warmup_steps=10)
    rates = [settings.schedule_at(step) for step in range(101)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)], rel=0.03)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == pytest.approx(0)


def test_learning_rate_also_ends_at_nothing_by_the_clock():
    settings = VisionTraining(steps=1000, warmup_steps=10, minutes=10)
    assert settings.schedule_at(20, seconds=300) == pytest.approx(0.5)
    assert settings.schedule_at(20, seconds=600) == pytest.approx(0)


@pytest.mark.usefixtures("small_training")
def test_a_run_ends_by_the_clock_and_says_how_many_steps_it_took(data, tmp_path):
    settings = VisionTraining(steps=50, minutes=1e-9, sizes=SMALL, warmup_steps=1, num_workers=0)
    train(data, tmp_path, settings)
    report = json.loads((tmp_path / "metrics.json").read_text())
    assert report["steps"] == 1
    assert report["samples"]["photo"] == SMALL.photo


def test_rows_between_two_lines_of_a_block_count_for_nothing():
    upper = printed("AB")._replace(top=8.0, bottom=24.0)  # half of row 0, half of row 1
    lower = printed("CD")._replace(top=24.0, bottom=60.0)  # half of row 1, rows 2 and 3
    targets = vision_data._block_targets([[upper], [lower]], (4, 8)).reshape(4, 16)
    a, b, c, d = symbols("ABCD")
    assert targets[0].tolist() == [0] * 4 + [a, a, b, b] + [0] * 8
    assert set(targets[1]) == {IGNORE}
    assert targets[2].tolist() == targets[3].tolist() == [0] * 4 + [c, c, d, d] + [0] * 8
