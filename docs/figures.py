"""Draw the figures of docs/token-reduction.md: what each reducer leaves of a sample, by evidence.

    python docs/figures.py
    python docs/figures.py --learned RUN     # --work of benchmarks/learned_reduction.py

Asks omni-tiny about the samples in examples/media, once for each reducer, and draws
`reply.evidence`: kept cells as they are, merged cells tinted, dropped cells faded. The trained
scorer is that of the benchmark, on its puzzles.
"""

import argparse
import re
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

import omni
from finetune.bench.synthetic import TASKS, Puzzles
from finetune.bench.toy import MAX_RATE, build_toy
from omni.assistant import Assistant
from omni.thumbnails import frames, spectrogram

MEDIA = Path(__file__).parent.parent / "examples" / "media"
OUT = Path(__file__).parent / "figures"
PICTURE_WIDTH, STRIP_WIDTH, WIDEST = 300, 150, 900  # pixels
MERGED, FADED, EDGE = (40, 110, 230, 95), (205, 205, 205, 220), (255, 140, 0, 255)

FIGURES: dict[str, tuple[str, str]] = {
    "keyframes(0.5)": ("video", "clip.mp4"),
    "evs(0.7)": ("video", "clip.mp4"),
    "evs(0.7, floor=4)": ("video", "clip.mp4"),
    "temporal_merge(0.7)": ("video", "clip.mp4"),
    "tome(0.5)|evs(0.5)": ("video", "clip.mp4"),
    "avg_pool(2)": ("image", "ticket.pdf"),
    "merge(0.5)": ("image", "ticket.pdf"),
    "prune_merge(0.5)": ("image", "ticket.pdf"),
    "cls_prune_merge(0.5)": ("image", "ticket.pdf"),
    "divprune(0.5)": ("image", "ticket.pdf"),
    "density_cluster(0.5)": ("image", "ticket.pdf"),
    "adjacent_merge(0.5)": ("audio", "recording.wav"),
    "silence(0.4)": ("audio", "recording.wav"),
    "uniform(0.5)": ("image", "ticket.pdf"),
    "random(0.5)": ("image", "ticket.pdf"),
}


def figure_name(spec: str) -> str:
    """File name of a spec's figure."""
    return re.sub(r"[(|]|, ", "-", re.sub(r"[)=]", "", spec)) + ".png"


def shade(picture: Image.Image, entry: Any, step: Any) -> Image.Image:
    """Tint and fade one picture by the boxes of its cells."""
    picture = picture.convert("RGBA")
    layer = Image.new("RGBA", picture.size)
    draw = ImageDraw.Draw(layer)
    x, y = (side / size for side, size in zip(picture.size, entry["size"], strict=True))
    for state, colour in (("merged", MERGED), ("dropped", FADED)):
        for left, top, right, bottom in step["boxes"][state]:
            draw.rectangle((left * x, top * y, right * x, bottom * y), fill=colour)
    return Image.alpha_composite(picture, layer).convert("RGB")


def draw_pictures(reply: Any, width: int) -> Image.Image:
    """An image, or the steps of a video in a row, each with its seconds."""
    [entry] = reply.evidence
    [item] = reply.request.media
    steps = entry["steps"]
    per_step = max(1, -(-item.grid[0] // len(steps)))
    wanted = {number * per_step: step for number, step in enumerate(steps)}
    shown = []
    request = reply.request
    for number, picture in frames(item, set(wanted), request.pixel_mean, request.pixel_std):
        height = round(picture.height * width / picture.width)
        shown.append(
            (shade(picture.resize((width, height)), entry, wanted[number]), wanted[number])
        )
    most = WIDEST // (width + 6)
    shown = shown[:most]
    label = 18 if "seconds" in shown[0][1] else 0
    height = shown[0][0].height
    sheet = Image.new("RGB", (len(shown) * (width + 6) - 6, height + label), "white")
    draw = ImageDraw.Draw(sheet)
    for place, (picture, step) in enumerate(shown):
        sheet.paste(picture, (place * (width + 6), 0))
        if label:
            start, end = step["seconds"]
            text = f"{start:.1f}-{end:.1f} s: {step['kept'] + step['merged']} cells"
            draw.text((place * (width + 6), height + 3), text, "black", ImageFont.load_default(11))
    return sheet


def draw_sound(reply: Any) -> Image.Image:
    """A spectrogram with its spans."""
    [entry] = reply.evidence
    [item] = reply.request.media
    duration_s = entry["timeline"][-1]["seconds"][1]
    picture = spectrogram(item, duration_s).convert("RGBA").resize((WIDEST // 2, 120))
    layer = Image.new("RGBA", picture.size)
    draw = ImageDraw.Draw(layer)
    scale = picture.width / duration_s
    for state, colour in (("merged", MERGED), ("dropped", FADED)):
        for start, end in entry["spans"][state]:
            draw.rectangle((start * scale, 0, end * scale, picture.height), fill=colour)
    for start, _ in sorted(entry["spans"]["merged"]):
        draw.line((start * scale, 0, start * scale, picture.height), fill=EDGE)
    return Image.alpha_composite(picture, layer).convert("RGB")


def draw(reply: Any, modality: str) -> Image.Image:
    """The evidence of a reply about one medium."""
    if modality == "audio":
        return draw_sound(reply)
    return draw_pictures(reply, PICTURE_WIDTH if modality == "image" else STRIP_WIDTH)


def save(picture: Image.Image, name: str) -> None:
    """Write a figure, small."""
    OUT.mkdir(exist_ok=True)
    picture.quantize(96).save(OUT / name, optimize=True)


def draw_learned(work: Path, spec: str = "learned(0.75)") -> None:
    """Draw what trained scorers keep of one puzzle a task.

    Args:
        work: Folder of the benchmark's stages.
        spec: The reducer.
    """
    model, processor = build_toy()
    for modality in TASKS.values():
        model.add_token_scorer(modality, (0.0, MAX_RATE))
    model.load_state_dict(torch.load(work / "scorers" / "model.pt", weights_only=True))
    assistant = Assistant(model.eval(), processor, name="toy")
    for task, modality in TASKS.items():
        messages = Puzzles((task,), 1, seed=21)[0].messages
        reply = assistant.chat(messages, reduction={modality: spec}, max_new_tokens=1)
        name = figure_name(spec).replace(".png", f"-{task}.png")
        save(draw(reply, modality), name)


def main() -> None:
    """Draw all of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--learned", type=Path, help="draw only what trained scorers keep")
    work = parser.parse_args().learned
    if work is not None:
        draw_learned(work)
        return
    assistant = omni.load()
    for spec, (modality, name) in FIGURES.items():
        reply = assistant.ask(
            "What is in it?", MEDIA / name, reduction={modality: spec}, max_new_tokens=1
        )
        save(draw(reply, modality), figure_name(spec))


if __name__ == "__main__":
    main()
