"""One workspace: a medium, a question, an answer, and what the model was given of the medium.

The tabs differ in how the medium is chosen and in their samples; the wiring is the same:

1. A new medium shows its preview and the plan.
2. A changed setting shows the new plan.
3. A question streams the answer, then shows evidence and ledger in place of the preview.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from demo.models import Loaded, Models
from demo.samples import Sample, choose, draw_samples
from demo.token_panel import draw_token_controls
from demo.visitors import Visitor, Visitors
from omni.assistant import AnswerStream
from omni.errors import OmniError
from omni.inputs import Modality
from omni.panels import evidence_panel, ledger_panel, message_panel, plan_panel, preview_panel

NO_MEDIUM = "Choose a file first, or one of the examples."
NO_QUESTION = "Write a question first."
# A button of a panel makes the player of its tab jump.
SEEK = """
element.addEventListener('click', event => {
  const button = event.target.closest('button.seek');
  if (!button) return;
  const name = button.closest('[id$="-shown"]').id.replace('-shown', '-medium');
  const medium = document.getElementById(name);
  const inside = [...medium.querySelectorAll('*')].map(part => part.shadowRoot).filter(Boolean);
  [medium, ...inside].flatMap(root => [...root.querySelectorAll('video, audio')])
    .filter(player => player.duration > 0)
    .forEach(player => { player.currentTime = Number(button.dataset.seconds); });
});
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """What makes a workspace that of documents, videos or recordings.

    Attributes:
        name: Starts the ids of its elements and the names of its endpoints.
        modalities: Which media its files become.
        samples: Files and questions to try.
        draw_medium: Draws the component by which a file is chosen; its value is a path.
        answer: What the answer is called.
    """

    name: str
    modalities: Sequence[Modality]
    samples: Sequence[Sample]
    draw_medium: Callable[[], gr.components.Component]
    answer: str = "Answer"


def draw_workspace(workspace: Workspace, models: Models, visitors: Visitors) -> None:
    """Draw a workspace into the current tab and wire it.

    Args:
        workspace: What kind.
        models: What may answer.
        visitors: What is kept for each browser tab.
    """
    name = workspace.name
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
            answer = gr.Textbox(
                label=workspace.answer,
                lines=3,
                max_lines=12,
                interactive=False,
                elem_id=f"{name}-answer",
            )
            tries = draw_samples(workspace.samples)
            controls = draw_token_controls(
                workspace.modalities, models.get().assistant.model.config, name=name
            )
        with gr.Column(scale=3, min_width=320):
            shown = _panel(f"{name}-shown", script=SEEK)
            plan = _panel(f"{name}-plan", message_panel(NO_MEDIUM))
            ledger = _panel(f"{name}-ledger")

    def prepare(
        visitor: Visitor, loaded: Loaded, path: str | None, asked: str, values: Sequence[Any]
    ) -> AnswerStream | str:
        """A stream that has not run, or a sentence why there is none."""
        if not path:
            return NO_MEDIUM
        try:
            visitors.add_files(visitor, [path])
            return loaded.assistant.stream(asked, Path(path), **controls.options(values))
        except OmniError as error:
            return visitors.without_folder(str(error))

    def planned(visit: gr.Request, path: str | None, asked: str, *values: Any) -> str:
        visitor = visitors.of(visit.session_hash)
        loaded = models.get(visitor.choice)
        stream = prepare(visitor, loaded, path, asked or "", values)
        if isinstance(stream, str):
            return message_panel(stream)
        return plan_panel(stream.plan, loaded.pace.estimate(stream.plan))

    def previewed(
        visit: gr.Request, path: str | None, asked: str, *values: Any
    ) -> tuple[str, str, str, str]:
        visitor = visitors.of(visit.session_hash)
        loaded = models.get(visitor.choice)
        stream = prepare(visitor, loaded, path, asked or "", values)
        if isinstance(stream, str):
            return message_panel(stream), "", "", ""
        try:
            preview = preview_panel(stream.request)
        except OmniError as error:
            return message_panel(visitors.without_folder(str(error))), "", "", ""
        return plan_panel(stream.plan, loaded.pace.estimate(stream.plan)), preview, "", ""

    def answered(
        visit: gr.Request, path: str | None, asked: str, *values: Any
    ) -> Iterator[tuple[Any, Any, Any]]:
        if not (asked or "").strip():
            yield NO_QUESTION, gr.skip(), gr.skip()
            return
        visitor = visitors.of(visit.session_hash)
        loaded = models.get(visitor.choice)
        stream = prepare(visitor, loaded, path, asked, values)
        if isinstance(stream, str):
            yield f"Not answered. {stream}", gr.skip(), gr.skip()
            return
        text = ""
        yield text, gr.skip(), ""
        try:
            for piece in models.run(stream):
                text += piece
                yield text, gr.skip(), gr.skip()
            reply = stream.reply()
            loaded.pace.note(reply.ledger)
            yield reply.text, evidence_panel(reply), ledger_panel(reply.ledger)
        except OmniError as error:
            yield f"Not answered. {visitors.without_folder(str(error))}", gr.skip(), gr.skip()

    request = [medium, question, *controls.components]
    results, previews = [answer, shown, ledger], [plan, shown, ledger, answer]
    # Not `change`, which comes for samples too, while they are being answered.
    arrivals = ("upload", "clear", "delete", "stop_recording")
    gr.on(
        [getattr(medium, event) for event in arrivals if hasattr(medium, event)],
        previewed,
        request,
        previews,
        api_name=f"{name}_preview",
        concurrency_id="plan",
        concurrency_limit=4,
        show_progress="hidden",
    )
    gr.on(
        [component.change for component in (question, *controls.components)],
        planned,
        request,
        plan,
        api_name=f"{name}_plan",
        concurrency_id="plan",
        show_progress="hidden",
        trigger_mode="always_last",
    )
    runs = [
        gr.on(
            [ask.click, question.submit],
            answered,
            request,
            results,
            api_name=f"{name}_ask",
            concurrency_id="model",
            concurrency_limit=1,
        )
    ]
    for button, sample in tries:
        runs.append(
            button.click(
                choose(sample, visitors.upload_folder),
                None,
                [medium, question],
                api_visibility="private",
            )
            .then(
                previewed,
                request,
                previews,
                api_visibility="private",
                concurrency_id="plan",
                show_progress="hidden",
            )
            .then(
                answered,
                request,
                results,
                api_visibility="private",
                concurrency_id="model",
            )
        )
    for run in runs:  # now the time is known better
        run.then(planned, request, plan, api_visibility="private", show_progress="hidden")
    stop.click(None, cancels=runs, api_visibility="private")


def _panel(elem_id: str, value: str = "", script: str | None = None) -> gr.HTML:
    return gr.HTML(value, elem_id=elem_id, apply_default_css=False, js_on_load=script)
