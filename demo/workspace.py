"""One workspace: a medium, a question, an answer, and what the model was given of the medium.

The tabs differ in how the medium is chosen and in their samples; the wiring is the same:

1. A new medium shows its preview and the plan.
2. A changed setting shows the new plan.
3. A question streams the answer, then shows evidence and ledger in place of the preview.
4. Where the medium has time, it can be asked about stretch by stretch; of documents, the pages that
   the answer comes from are marked.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from demo.endpoints import named
from demo.models import Models
from demo.samples import Sample, choose, draw_samples
from demo.token_panel import TokenControls, draw_token_controls
from demo.visitors import Visitors
from demo.workspace_handlers import MOST_PAGES, NO_MEDIUM, WorkspaceHandlers
from omni.inputs import Modality
from omni.panels import message_panel

# A button of a panel makes the player of its tab jump.
SEEK = """
element.addEventListener('click', event => {
  const button = event.target.closest('button.seek');
  if (!button) return;
  const panel = button.closest('[id$="-shown"], [id$="-transcript"]');
  const name = panel.id.replace(/-(shown|transcript)$/, '-medium');
  const medium = document.getElementById(name);
  const inside = [...medium.querySelectorAll('*')].map(part => part.shadowRoot).filter(Boolean);
  [medium, ...inside].flatMap(root => [...root.querySelectorAll('video, audio')])
    .filter(player => player.duration > 0)
    .forEach(player => { player.currentTime = Number(button.dataset.seconds); });
});
"""
QUIET = {"show_progress": "hidden"}
PRIVATE = {"api_visibility": "private"}  # wiring of the page, of no use to programs
PLANNING = {"concurrency_id": "plan"}
ANSWERING = {"concurrency_id": "model", "concurrency_limit": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """What makes a workspace that of documents, videos or recordings.

    Attributes:
        name: Starts the ids of its elements and the names of its endpoints.
        modalities: Which media its files become.
        samples: Files and questions to try.
        draw_medium: Draws the component by which a file is chosen; its value is a path.
        has_pages: Whether an answer may come from some of its pages.
        stretch_s: Seconds of a stretch at first, if a file can be asked about stretch by stretch.
    """

    name: str
    modalities: Sequence[Modality]
    samples: Sequence[Sample]
    draw_medium: Callable[[], gr.components.Component]
    has_pages: bool = False
    stretch_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Drawn:
    """The components of a workspace."""

    medium: Any
    question: Any
    ask: gr.Button
    stop: gr.Button
    answer: Any
    sources: gr.Checkbox | None
    stretch: Any
    transcribe: gr.Button | None
    transcript: Any
    samples: list[tuple[gr.Button, Sample]]
    controls: TokenControls
    shown: Any
    plan: Any
    ledger: Any


def draw_workspace(workspace: Workspace, models: Models, visitors: Visitors) -> None:
    """Draw a workspace into the current tab and wire it.

    Args:
        workspace: What kind.
        models: What may answer.
        visitors: What is kept for each browser tab.
    """
    drawn = _draw(workspace, models)
    handlers = WorkspaceHandlers(workspace.name, models, visitors, drawn.controls)
    _wire(workspace, drawn, handlers, visitors)


def _draw(workspace: Workspace, models: Models) -> _Drawn:
    name = workspace.name
    sources = stretch = transcribe = transcript = None
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=320):
            medium = workspace.draw_medium()
            question = gr.Textbox(
                label="Question",
                value=workspace.samples[0].question,
                max_lines=4,
                elem_id=f"{name}-question",
            )
            with gr.Row():
                ask = gr.Button("Ask", variant="primary", elem_id=f"{name}-ask")
                stop = gr.Button("Stop", elem_id=f"{name}-stop")
            if workspace.has_pages:
                sources = gr.Checkbox(
                    value=True,
                    label="Mark the pages that the answer comes from",
                    info=f"Reads documents of 2 to {MOST_PAGES} pages once more for each page.",
                    elem_id=f"{name}-sources",
                )
            answer = gr.Textbox(
                label="Answer",
                lines=3,
                max_lines=12,
                interactive=False,
                elem_id=f"{name}-answer",
            )
            if workspace.stretch_s is not None:
                with gr.Row(equal_height=False):
                    stretch = gr.Number(
                        value=workspace.stretch_s,
                        minimum=1,
                        label="Seconds of a stretch",
                        min_width=120,
                        elem_id=f"{name}-stretch",
                    )
                    transcribe = gr.Button(
                        "Ask about each stretch", min_width=160, elem_id=f"{name}-transcribe"
                    )
                transcript = _panel(f"{name}-transcript", script=SEEK)
            samples = draw_samples(workspace.samples)
            controls = draw_token_controls(
                workspace.modalities, models.get().assistant.model.config, name=name
            )
        with gr.Column(scale=3, min_width=320):
            shown = _panel(f"{name}-shown", script=SEEK)
            plan = _panel(f"{name}-plan", message_panel(NO_MEDIUM))
            ledger = _panel(f"{name}-ledger")
    return _Drawn(
        medium=medium,
        question=question,
        ask=ask,
        stop=stop,
        answer=answer,
        sources=sources,
        stretch=stretch,
        transcribe=transcribe,
        transcript=transcript,
        samples=samples,
        controls=controls,
        shown=shown,
        plan=plan,
        ledger=ledger,
    )


def _wire(
    workspace: Workspace, drawn: _Drawn, handlers: WorkspaceHandlers, visitors: Visitors
) -> None:
    name, controls = workspace.name, drawn.controls
    request = [drawn.medium, drawn.question, *controls.components]
    names = ["file", "question", *controls.by_name]
    planned, previewed = named(handlers.plan, names), named(handlers.preview, names)
    previews = [drawn.plan, drawn.shown, drawn.ledger, drawn.answer]
    results = [drawn.answer, drawn.shown, drawn.ledger]
    # Not `change`, which comes for samples too, while they are being answered.
    arrivals = ("upload", "clear", "delete", "stop_recording")
    gr.on(
        [getattr(drawn.medium, event) for event in arrivals if hasattr(drawn.medium, event)],
        previewed,
        request,
        previews,
        api_name=f"{name}_preview",
        concurrency_limit=4,
        **PLANNING,
        **QUIET,
    )
    gr.on(
        [component.change for component in (drawn.question, *controls.components)],
        planned,
        request,
        drawn.plan,
        api_name=f"{name}_plan",
        trigger_mode="always_last",
        **PLANNING,
        **QUIET,
    )
    answered, asked_with = named(handlers.answer, names), request
    if drawn.sources is not None:
        asked_with = [drawn.medium, drawn.question, drawn.sources, *controls.components]
        with_sources = ["file", "question", "find_sources", *controls.by_name]
        answered = named(handlers.answer_with_sources, with_sources)
    runs = [
        gr.on(
            [drawn.ask.click, drawn.question.submit],
            answered,
            asked_with,
            results,
            api_name=f"{name}_ask",
            **ANSWERING,
        )
    ]
    for button, sample in drawn.samples:
        chosen = button.click(
            choose(sample, visitors.upload_folder), None, [drawn.medium, drawn.question], **PRIVATE
        )
        shown = chosen.then(previewed, request, previews, **PLANNING, **QUIET, **PRIVATE)
        runs.append(shown.then(answered, asked_with, results, concurrency_id="model", **PRIVATE))
    for run in runs:  # now the time is known better
        run.then(planned, request, drawn.plan, **QUIET, **PRIVATE)
    if drawn.transcribe is not None:
        rows = gr.JSON(visible=False, label="Rows")
        runs.append(
            drawn.transcribe.click(
                named(handlers.transcribe, ["file", "question", "stretch_s", *controls.by_name]),
                [drawn.medium, drawn.question, drawn.stretch, *controls.components],
                [drawn.transcript, rows],
                api_name=f"{name}_transcript",
                **ANSWERING,
            )
        )
    drawn.stop.click(
        named(handlers.stop, ["answer"]),
        [drawn.answer],
        [drawn.answer],
        cancels=runs,
        queue=False,
        **PRIVATE,
    )


def _panel(elem_id: str, value: str = "", script: str | None = None) -> gr.HTML:
    return gr.HTML(value, elem_id=elem_id, apply_default_css=False, js_on_load=script)
