"""Crops of real receipts: each shop on one side of the split, reserved fields left out."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.tiny.receipts import crops_by_grid, cut, receipt_lines
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
        key = {"company": f"THE SHOP {i // 2}", "address": "7 HIGH STREET"}
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


def test_crops_of_a_batch_share_the_grid_that_the_product_gives_their_boxes(data: Path) -> None:
    for grid, crops in crops_by_grid(data, "train", MIN_PATCHES, MAX_PATCHES).items():
        assert all(image_grid(*cut(crop).shape[:2]) == grid for crop in crops)
    task = receipt_crops(np.random.default_rng(0), data, "train", 5)
    assert task.part.patches.shape[:2] == (5, task.part.grid[0] * task.part.grid[1])
    read = [sum(number > 0 for number in row) for row in task.targets["reading"].tolist()]
    assert read == [len(text) for text in task.texts]
