"""What a run leaves behind: an adapter or a checkpoint, its card, its curve.

An adapter is PEFT's: `adapter_model.safetensors` and `adapter_config.json`, which plain
`PeftModel.from_pretrained` loads. Beside it, `omni_adapter.json` holds what PEFT has no place for:
the reduction that it was trained under, a fingerprint of the base, and the routers' correction
biases if they were balanced. A checkpoint has the reduction as its default.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from finetune.log import METRICS_FILE
from finetune.presets import Targets
from finetune.settings import FinetuneSettings
from omni.adapters import ADAPTER_FILE
from omni.model import OmniModel
from omni.processor import OmniProcessor

if TYPE_CHECKING:
    from finetune.loop import Result

EXAMPLES_FILE = "examples.jsonl"
WIDTH, HEIGHT, MARGIN = 900, 420, 60
INK, FAINT, LINE = "#1a1a1a", "#c9c9c9", "#0b5cad"


def save_result(
    wrapped: nn.Module,
    model: OmniModel,
    processor: OmniProcessor,
    targets: Targets,
    settings: FinetuneSettings,
    result: "Result",
    out: Path,
    base: str,
    base_fingerprint: str,
    router_biases: Mapping[str, Tensor],
) -> None:
    """Write everything.

    Args:
        wrapped: PEFT's wrapper, or the model itself.
        model: The model inside.
        processor: Saved beside a whole checkpoint.
        targets: What was trained.
        settings: Of the run.
        result: What came out.
        out: Folder.
        base: Name of the checkpoint that the model came from.
        base_fingerprint: Its `omni.adapters.fingerprint`.
        router_biases: Those that were balanced, by name; a checkpoint holds them anyway.
    """
    if targets.uses_lora:
        from peft import PeftModel

        assert isinstance(wrapped, PeftModel)
        for config in wrapped.peft_config.values():
            config.base_model_name_or_path = base
        wrapped.save_pretrained(str(out), save_embedding_layers=False)
        facts = {
            "base": base,
            "base_fingerprint": base_fingerprint,
            "preset": settings.preset,
            "reduction": settings.reduction,
            "router_biases": {name: bias.tolist() for name, bias in router_biases.items()},
        }
        (out / ADAPTER_FILE).write_text(json.dumps(facts, indent=2) + "\n")
    else:
        model.config.reduction = {**model.config.reduction, **settings.reduction}
        model.save_pretrained(out)
        processor.save_pretrained(out)
    if result.after is not None and result.after.examples:
        lines = [json.dumps({"row": e.origin, "true": e.true, "found": e.found, "score": e.score})
                 for e in result.after.examples]  # fmt: skip
        (out / EXAMPLES_FILE).write_text("\n".join(lines) + "\n")
    draw_curve(out / METRICS_FILE, out / "curve.png")
    (out / "README.md").write_text(card(settings, result, base, targets))


def card(settings: FinetuneSettings, result: "Result", base: str, targets: Targets) -> str:
    """The model card, in Markdown: what was trained, on what, and what it is worth.

    Args:
        settings: Of the run.
        result: Of the run.
        base: Name of the base checkpoint.
        targets: What was trained.
    """
    kind = "adapter" if targets.uses_lora else "checkpoint"
    lines = ["---", "library_name: peft" if targets.uses_lora else "library_name: omni"]
    lines += [f"base_model: {base}", "---", f"# Fine-tuned {kind} of {base}", ""]
    lines += [f"Preset `{settings.preset}`, {result.steps} steps of {settings.samples_per_step} "
              f"conversations. {result.explanation.trained:,} of {result.explanation.total:,} "
              f"values ({100 * result.explanation.share:.2f} %) were trained.", ""]  # fmt: skip
    if result.before is not None and result.after is not None:
        lines += ["| held-out rows | base | after |", "| --- | --- | --- |"]
        lines += [f"| loss | {result.before.loss:.4f} | {result.after.loss:.4f} |"]
        if result.before.score is not None and result.after.score is not None:
            cells = [f"{100 * s.mean:.1f} ({100 * s.low:.1f} to {100 * s.high:.1f})"
                     for s in (result.before.score, result.after.score)]  # fmt: skip
            lines += [f"| {result.after.metric}, %, with 95 % interval | {' | '.join(cells)} |"]
        lines += [
            "",
            f"{len(result.after.examples)} generated answers are in `{EXAMPLES_FILE}`.",
            "",
        ]
    if result.bad:
        lines += [f"{len(result.bad)} rows of the data could not be used:", ""]
        lines += [f"- {bad}" for bad in result.bad[:20]]
        lines += [""]
    lines += ["![loss](curve.png)", "", "Settings:", "", "```json"]
    lines += [json.dumps(settings.to_dict(), indent=2), "```", ""]
    return "\n".join(lines)


def draw_curve(metrics: Path, path: Path) -> None:
    """Draw the loss of every step, and evaluations as dots.

    Args:
        metrics: JSON Lines of a run.
        path: PNG file to write.
    """
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    if all(row["loss"] is None for row in rows):
        return
    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=14)
    learned = [row for row in rows if row["loss"] is not None]
    losses = [row["loss"] for row in learned]
    evaluated = [(row["step"], row["eval"]["loss"]) for row in rows if "eval" in row]
    top = max([*losses, *(loss for _, loss in evaluated)]) or 1.0
    last = rows[-1]["step"]

    def place(step: float, loss: float) -> tuple[float, float]:
        x = MARGIN + step / last * (WIDTH - 2 * MARGIN)
        return x, HEIGHT - MARGIN - loss / top * (HEIGHT - 2 * MARGIN)

    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        _, y = place(0, share * top)
        draw.line([(MARGIN, y), (WIDTH - MARGIN, y)], fill=FAINT)
        draw.text((MARGIN - 8, y), f"{share * top:.2f}", INK, font, anchor="rm")
        x, _ = place(share * last, 0)
        draw.text((x, HEIGHT - MARGIN + 8), f"{share * last:.0f}", INK, font, anchor="mt")
    points: Sequence[Any] = [place(row["step"], row["loss"]) for row in learned]
    if len(points) > 1:
        draw.line(list(points), fill=LINE, width=2)
    for step, loss in evaluated:
        x, y = place(step, loss)
        draw.ellipse([(x - 4, y - 4), (x + 4, y + 4)], fill="#8a4b00")
    draw.text((MARGIN, 18), "loss of a step (line) and of held-out rows (dots)", INK, font)
    draw.text((WIDTH / 2, HEIGHT - 16), "step", INK, font, anchor="mm")
    picture.save(path)
