"""Crops of real receipts: each shop on one side of the split, reserved fields left out."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.tiny.chains import are_related
from finetune.tiny.receipts import (
    Crop,
    agrees,
    crops_by_grid,
    cut,
    is_held_out,
    receipt_lines,
    receipt_pieces,
    rows_of,
)
from finetune.tiny.vision_data import MAX_PATCHES, MIN_PATCHES, image_grid, receipt_crops

LINES = [
    {"box": [10, 5, 90, 25], "text": "TOTAL 12.50"},
    {"box": [10, 30, 90, 50], "text": "THE SHOP"},  # the company's name
    {"box": [10, 55, 90, 75], "text": "a line that is too long"},
    {"box": [10, 55, 90, 75], "text": "ÄÖÜ"},
    {"box": [10, 80, 60, 98], "text": "7"},
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "sroie" / "images").mkdir(parents=True)
    rows = []
    for i in range(40):
        name = f"images/{i:03d}.png"
        pixels = np.full((100, 100), 200, np.uint8)
        pixels[5:25, 10:90] = i  # the total's line carries the receipt's number
        Image.fromarray(pixels).save(folder / "sroie" / name)
        key = {"company": f"THE SHOP {chr(65 + i // 2)}", "address": f"{i // 2} HIGH STREET"}
        rows.append({"file": name, "key": key, "lines": LINES})
    (folder / "sroie" / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def shops(data: Path, split: str) -> set[int]:
    return {int(crop.receipt[10, 20]) // 2 for crop in receipt_lines(data, split)}


def test_every_shop_is_on_one_side(data: Path) -> None:
    assert shops(data, "train")
    assert shops(data, "validation")
    assert shops(data, "train").isdisjoint(shops(data, "validation"))
    assert len(shops(data, "train") | shops(data, "validation")) == 20


def test_a_shop_whose_chain_is_trained_on_is_not_measured_on() -> None:
    held_out = next(n for n in map("MART {}".format, range(99)) if is_held_out(n))
    branch = next(n for n in (f"{held_out} ({i}) BHD" for i in range(99)) if not is_held_out(n))
    alone = next(n for n in map("STORE {}".format, range(99)) if is_held_out(n))
    rows = [{"key": {"company": name}} for name in (held_out, branch, alone)]
    assert rows_of(rows, "train") == [rows[1]]
    assert rows_of(rows, "validation") == [rows[2]]


@pytest.mark.parametrize(
    ("one", "other", "related"),
    [
        ({"company": "MR. D.I.Y. (M) SDN BHD"}, {"company": "MR D.I.Y.(JOHOR) SDN. BHD."}, True),
        ({"company": "GREEN MART"}, {"company": "GREEN MARKET"}, False),
        ({"company": "AB"}, {"company": "ABC STORE"}, False),  # too short to tell
        ({"company": "ONE", "address": "7, HIGH ST."}, {"address": "7 High St"}, True),
        ({"company": "ONE"}, {"company": "TWO"}, False),  # no address is like no other
    ],
)
def test_chains_are_told_by_name_or_address(one: dict, other: dict, related: bool) -> None:
    assert are_related(one, other) == are_related(other, one) == related


def test_reserved_long_and_unknown_lines_stay_out(data: Path) -> None:
    assert {crop.text for crop in receipt_lines(data, "train")} == {"TOTAL 12.50", "7"}


def test_a_crop_is_its_box_and_jitter_stays_inside_the_receipt(data: Path) -> None:
    crop = receipt_lines(data, "train")[0]
    assert cut(crop).shape == (20, 80, 3)
    rng = np.random.default_rng(0)
    for _ in range(50):
        height, width = cut(crop, rng).shape[:2]
        assert 17 <= height <= 26
        assert 77 <= width <= 86


def test_pieces_are_words_of_rows_below_company_and_address(tmp_path: Path) -> None:
    (tmp_path / "sroie").mkdir()
    rng = np.random.default_rng(0)
    page = np.full((100, 200), 245, np.uint8)
    printed = (10, 20, 120), (60, 20, 80), (60, 120, 180), (82, 20, 70), (82, 110, 180)
    for top, left, right in printed:
        page[top : top + 16, left:right] = np.where(rng.random((16, right - left)) < 0.5, 30, 245)
    Image.fromarray(page).save(tmp_path / "sroie" / "page.png")
    lines = [
        {"box": [20, 10, 120, 26], "text": "THE SHOP"},
        {"box": [20, 60, 180, 76], "text": "TOTAL: 12.50"},
        {"box": [20, 82, 180, 98], "text": "SHOP. THANKS"},  # a word of the name, again
    ]
    key = {"company": "THE SHOP", "address": "7 HIGH STREET"}
    row = {"file": "page.png", "key": key, "lines": lines}
    (tmp_path / "sroie" / "manifest.jsonl").write_text(json.dumps(row))
    first, second, third = receipt_pieces(tmp_path, "train")
    assert (first.text, second.text, third.text) == ("TOTAL:", "12.50", "THANKS")
    assert first.box[0] <= 20 < 80 <= first.box[2] <= second.box[0] <= 120 < 180 <= second.box[2]
    assert first.box[1] > 40


@pytest.mark.parametrize(
    ("said", "agree"),
    [
        ("2.00 SR", True),
        ("2.00", False),  # a whole line of the piece is missing
        ("TEA 2.00 SR", False),  # the first line is not in it
        ("2.00 SR 7", True),  # of the last, it shows a part
    ],
)
def test_a_piece_has_the_words_of_the_lines_that_it_shows(said: str, agree: bool) -> None:
    scan = np.zeros((20, 100), np.uint8)
    boxes = {"TEA": (0, 20), "2.00": (30, 50), "SR": (52, 60), "7": (62, 80)}
    lines = [Crop(scan, (left, 2, right, 18), text) for text, (left, right) in boxes.items()]
    assert agrees(Crop(scan, (28, 0, 70, 20), said), lines) == agree


def test_crops_of_a_batch_share_the_grid_that_the_product_gives_their_boxes(data: Path) -> None:
    for grid, crops in crops_by_grid(data, "train", MIN_PATCHES, MAX_PATCHES).items():
        assert all(image_grid(*cut(crop).shape[:2]) == grid for crop in crops)
    task = receipt_crops(np.random.default_rng(0), data, "train", 5)
    assert task.part.patches.shape[:2] == (5, task.part.grid[0] * task.part.grid[1])
    read = [sum(number > 0 for number in row) for row in task.targets["reading"].tolist()]
    assert read == [len(text) for text in task.texts]
