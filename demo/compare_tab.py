"""Two settings on the same question, side by side: answers, tokens, seconds, what was kept."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from demo.endpoints import named
from demo.models import Models
from demo.samples import CLIP, TICKET, WORD, choose, draw_samples
from demo.token_panel import TokenControls, draw_token_controls
from demo.visitors import Visitors
from demo.workspace_handlers import NO_MEDIUM, NO_QUESTION
from omni.budget import DEFAULT_REDUCERS
from omni.conversation import STOPPED
from omni.errors import OmniError, StoppedError
from omni.panels import compare_panel, evidence_panel, message_panel, plan_panel
from omni.reply import Reply

FILE_TYPES = ["image", "video", "audio", ".pdf", ".tif", ".tiff"]
NAME = "compare"
SIDES = {"A": None, "B": DEFAULT_REDUCERS}  # and what reduces tokens at first


def draw_compare_tab(models: Models, visitors: Visitors) -> None:
    """Draw it into the current tab and wire it.

    Args:
        models: What may answer.
        visitors: What is kept for each browser tab.
    """
    medium = gr.File(label="File", file_types=FILE_TYPES, height=140, elem_id="compare-medium")
    question = gr.Textbox(
        label="Question", value=CLIP.question, max_lines=4, elem_id="compare-question"
    )
    with gr.Row():
        ask = gr.Button("Compare", variant="primary", elem_id="compare-ask")
        stop = gr.Button("Stop", elem_id="compare-stop")
    tries = draw_samples([CLIP, WORD, TICKET])
    difference = gr.HTML(elem_id="compare-difference", apply_default_css=False)
    controls: list[TokenControls] = []
    answers, plans, shown = [], [], []
    with gr.Row(equal_height=False):
        for side, reducers in SIDES.items():
            with gr.Column(min_width=320):
                gr.Markdown(f"### Setting {side}")
                name = f"compare-{side.lower()}"
                controls.append(
                    draw_token_controls(
                        ["image", "video", "audio"],
                        models.get().assistant.model.config,
                        name=name,
                        reducers=reducers,
                    )
                )
                plans.append(gr.HTML(elem_id=f"{name}-plan", apply_default_css=False))
                answers.append(
                    gr.Textbox(
                        label=f"Answer {side}",
                        lines=3,
                        max_lines=12,
                        interactive=False,
                        elem_id=f"{name}-answer",
                    )
                )
                shown.append(gr.HTML(elem_id=f"{name}-shown", apply_default_css=False))

    def planned(
        visit: gr.Request,
        side: TokenControls,
        path: str | None,
        asked: str,
        values: tuple[Any, ...],
    ) -> str:
        if not path:
            return message_panel(NO_MEDIUM)
        visitor = visitors.of(visit.session_hash)
        loaded = models.get(visitor.choice)
        try:
            visitors.add_files(visitor, [path])
            plan = models.draw(
                loaded.assistant.plan, asked or "", Path(path), **side.options(values)
            )
        except OmniError as error:
            return message_panel(visitors.without_folder(str(error)))
        return plan_panel(plan, loaded.pace.estimate(plan))

    def compared(
        visit: gr.Request, path: str | None, asked: str, *values: Any
    ) -> Iterator[tuple[Any, ...]]:
        """One side after the other; what is not yet known is empty."""
        texts, pictures = ["", ""], ["", ""]
        if not path or not (asked or "").strip():
            yield *texts, *pictures, message_panel(NO_QUESTION if path else NO_MEDIUM)
            return
        visitor = visitors.of(visit.session_hash)
        loaded = models.get(visitor.choice)
        replies: list[Reply] = []
        stop = visitor.start(NAME)
        count = len(controls[0].components)
        for number, side in enumerate(controls):
            options = side.options(values[number * count : (number + 1) * count])
            try:
                visitors.add_files(visitor, [path])
                stream = models.draw(loaded.assistant.stream, asked, Path(path), **options)
                for piece in models.run(stream, stop):
                    texts[number] += piece
                    yield *texts, *pictures, ""
                replies.append(stream.reply())
                loaded.pace.note(replies[-1].ledger)
                pictures[number] = models.draw(evidence_panel, replies[-1])
            except StoppedError:
                texts[number] = texts[number] or STOPPED
            except OmniError as error:
                texts[number] = f"Not answered. {visitors.without_folder(str(error))}"
            yield *texts, *pictures, ""
        if len(replies) == len(SIDES):
            yield *texts, *pictures, compare_panel(*replies)

    def plan_of(side: TokenControls) -> Callable[..., str]:
        def plan(visit: gr.Request, path: str | None, asked: str, *values: Any) -> str:
            return planned(visit, side, path, asked, values)

        return plan

    for own, plan in zip(controls, plans, strict=True):
        gr.on(
            [component.change for component in (medium, question, *own.components)],
            plan_of(own),
            [medium, question, *own.components],
            plan,
            api_visibility="private",
            concurrency_id="plan",
            show_progress="hidden",
            trigger_mode="always_last",
        )

    def stopped(visit: gr.Request) -> None:
        visitors.of(visit.session_hash).stop(NAME)

    names = ["file", "question"]
    for letter, own in zip("ab", controls, strict=True):
        names += [f"{letter}_{name}" for name in own.by_name]
    request = [medium, question, *controls[0].components, *controls[1].components]
    runs = [
        gr.on(
            [ask.click, question.submit],
            named(compared, names),
            request,
            [*answers, *shown, difference],
            api_name="compare",
            concurrency_id="model",
            concurrency_limit=1,
        )
    ]
    for button, sample in tries:
        button.click(
            choose(sample, visitors.upload_folder),
            None,
            [medium, question],
            api_visibility="private",
        )
    stop.click(stopped, cancels=runs, queue=False, api_visibility="private")
