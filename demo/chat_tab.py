"""The chat: ask about images, videos, recordings and documents, and follow up.

send, retry, edit   note the question, show it at once, and wait in the queue
answer              stream the answer of the question that was noted
settle              show the send button again, save the conversation in the browser
"""

import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from demo.chat import NAME, Chat, chat_of, open_saved, saved_names, saved_ones, with_saved
from demo.chat_settings import AnswerControls, draw_answer_controls
from demo.models import Models
from demo.samples import CLIP, COLOUR, DIGIT, TICKET, WORD, Sample, draw_samples
from demo.seen import EMPTY, seen
from demo.visitors import Visitor, Visitors
from omni.conversation import STOPPED, Conversation, Turn
from omni.errors import OmniError

FILE_TYPES = ["image", "video", "audio", ".pdf", ".tif", ".tiff"]
SAMPLES = [DIGIT, CLIP, COLOUR, WORD, TICKET]
UPDATE_SECONDS = 0.05  # between two states of a streamed answer; more would only load the browser
STORAGE = {"storage_key": "omni-demo-conversations", "secret": "kept in this browser"}

PRIVATE = {"api_visibility": "private"}  # wiring of the page, of no use to programs

Update = Any
logger = logging.getLogger(__name__)


def draw_chat_tab(models: Models, visitors: Visitors) -> None:
    """Draw the chat into the current tab and wire it.

    Args:
        models: What may answer.
        visitors: What is kept for each browser tab.
    """
    handlers = _Handlers(models, visitors)
    kept = gr.BrowserState([], **STORAGE)
    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            chatbot = gr.Chatbot(
                label="Conversation",
                elem_id="chat",
                height="min(60vh, 560px)",
                editable="user",
                # A bubble for each part: gradio cannot edit a text that shares one with a file.
                group_consecutive_messages=False,
                feedback_options=None,
                buttons=["copy"],
                placeholder="Add files and ask about them, or try an example below.",
            )
            message = gr.MultimodalTextbox(
                label="Your question, with files",
                placeholder="Ask about images, videos, recordings, PDFs",
                file_types=FILE_TYPES,
                file_count="multiple",
                sources=["upload", "microphone"],
                stop_btn=False,
                max_plain_text_length=20_000,
                elem_id="chat-message",
            )
            samples = draw_samples(SAMPLES)
            with gr.Accordion("Take a picture with the camera", open=False):
                camera = gr.Image(
                    sources=["webcam"], type="filepath", label="Camera", height=260, buttons=[]
                )
                attach = gr.Button("Add the picture to the question", size="sm")
            new = gr.Button("New conversation", size="sm", elem_id="chat-new")
        with gr.Column(scale=1, min_width=260):
            with gr.Accordion("How to answer", open=False):
                controls = draw_answer_controls()
            with gr.Accordion("Saved in this browser", open=False):
                saved = gr.Dropdown(
                    [], value=None, label="Earlier conversations", elem_id="chat-saved"
                )
                delete = gr.Button("Delete all of them", size="sm", variant="stop")
    with gr.Accordion("What the model read for the last answer", open=True):
        evidence = gr.HTML(EMPTY, elem_id="chat-evidence", apply_default_css=False)

    shown = [chatbot, message]
    answering: list[Any] = []
    asking: list[tuple[Any, Any, Any]] = [
        (message.submit, handlers.send, [message]),
        (chatbot.retry, handlers.retry, None),
        (chatbot.edit, handlers.edit, None),
        *((button.click, handlers.send_sample(sample), None) for button, sample in samples),
    ]
    for event, note, inputs in asking:
        noted = event(note, inputs, shown, queue=False, **PRIVATE)
        answer = noted.then(
            handlers.answer,
            controls.components,
            [chatbot, evidence],
            concurrency_id="model",
            concurrency_limit=1,
            show_progress="minimal",
            show_progress_on=[chatbot],
            **PRIVATE,
        )
        answering.append(answer)
        answer.then(handlers.settle, [kept], [*shown, kept], queue=False, **PRIVATE)
    message.stop(handlers.stop, [kept], [*shown, kept], cancels=answering, queue=False, **PRIVATE)
    attach.click(handlers.attach, [message, camera], [message, camera], queue=False, **PRIVATE)
    chatbot.undo(handlers.undo, None, shown, queue=False, **PRIVATE)
    gr.on(
        [new.click, chatbot.clear],
        handlers.start_anew,
        None,
        [*shown, evidence],
        cancels=answering,
        queue=False,
        api_name="new_conversation",
    )
    kept.change(_list_saved, [kept], [saved], queue=False, **PRIVATE)
    saved.input(handlers.open, [saved, kept], [*shown, evidence], queue=False, **PRIVATE)
    delete.click(lambda: ([], gr.Dropdown(choices=[], value=None)), None, [kept, saved], **PRIVATE)
    _offer_api(handlers, message, controls)


def _offer_api(
    handlers: "_Handlers", message: gr.MultimodalTextbox, controls: AnswerControls
) -> None:
    """The endpoint for programs, which have no use for what the page draws."""
    answer = gr.Textbox(visible=False, label="Answer")
    details = gr.JSON(visible=False, label="Details")
    gr.Button(visible=False).click(
        handlers.ask,
        [message, *controls.components],
        [answer, details],
        api_name="ask",
        concurrency_id="model",
        concurrency_limit=1,
    )


class _Handlers:
    """What happens; each handler begins with the visitor whose tab it is called from."""

    def __init__(self, models: Models, visitors: Visitors) -> None:
        self.models = models
        self.visitors = visitors

    def _enter(self, request: gr.Request) -> tuple[Visitor, Chat]:
        visitor = self.visitors.of(request.session_hash)
        return visitor, chat_of(visitor, self.models)

    def _read(self, visitor: Visitor, sent: dict[str, Any]) -> tuple[str, tuple[Path, ...]]:
        """Text and files of what a `gr.MultimodalTextbox` sends; the files are the visitor's."""
        files = tuple(Path(path) for path in sent.get("files") or ())
        try:
            self.visitors.add_files(visitor, files)
        except OmniError as error:
            raise gr.Error(str(error), print_exception=False) from None
        return str(sent.get("text") or ""), files

    # ---------------------------------------------------------------- what is asked next

    def send(self, sent: dict[str, Any], request: gr.Request) -> tuple[Update, Update]:
        """Note a question with its files."""
        visitor, chat = self._enter(request)
        text, files = self._read(visitor, sent)
        if not text.strip() and not files:
            return gr.skip(), gr.skip()
        chat.pending.append(Turn(question=text, media=files))
        return chat.messages(), _waiting()

    def send_sample(self, sample: Sample) -> Callable[[gr.Request], tuple[Update, Update]]:
        """A handler that asks about a file that ships with the demo."""

        def send(request: gr.Request) -> tuple[Update, Update]:
            path = sample.copy_to(self.visitors.upload_folder)
            return self.send({"text": sample.question, "files": [str(path)]}, request)

        return send

    def attach(self, sent: dict[str, Any], picture: str | None) -> tuple[Update, Update]:
        """Add a picture of the camera to the files of the question that is being written."""
        if picture is None:
            raise gr.Error("Take a picture first.", print_exception=False)
        files = [*(sent.get("files") or ()), picture]
        return gr.MultimodalTextbox(value={"text": sent.get("text") or "", "files": files}), None

    def retry(self, event: gr.RetryData, request: gr.Request) -> tuple[Update, Update]:
        """Ask a turn's question again; what followed it is dropped."""
        return self._ask_again(event.index, None, request)

    def edit(self, event: gr.EditData, request: gr.Request) -> tuple[Update, Update]:
        """Ask a changed question in place of a turn's; what followed it is dropped."""
        return self._ask_again(event.index, str(event.value), request)

    def _ask_again(
        self, index: Any, question: str | None, request: gr.Request
    ) -> tuple[Update, Update]:
        visitor, chat = self._enter(request)
        place = chat.turn_of_message(_first(index))
        if place >= len(chat.turns):
            return chat.messages(), _ready()
        turn = chat.turns[place]
        visitor.stop(NAME)  # an answer that is on its way is that turn's, or follows it
        chat.rollback(place)
        chat.pending.append(
            Turn(question=turn.question if question is None else question, media=turn.media)
        )
        return chat.messages(), _waiting()

    def undo(self, event: gr.UndoData, request: gr.Request) -> tuple[Update, Update]:
        """Take a turn back into the box to write in; what followed it is dropped."""
        _, chat = self._enter(request)
        place = chat.turn_of_message(_first(event.index))
        if place >= len(chat.turns):
            return chat.messages(), _ready()
        turn = chat.turns[place]
        chat.rollback(place)
        files = [str(path) for path in turn.media]
        return chat.messages(), gr.MultimodalTextbox(value={"text": turn.question, "files": files})

    # ---------------------------------------------------------------- answers

    def answer(
        self,
        system: str,
        temperature: float,
        top_p: float,
        max_new_tokens: float,
        seed: float | None,
        thinking: bool,
        reasoning_budget: float | None,
        request: gr.Request,
    ) -> Iterator[tuple[Update, Update]]:
        """Stream the answer of the question that was noted."""
        visitor, chat = self._enter(request)
        if not chat.pending:  # stopped while it waited in the queue
            return
        options = AnswerControls.options(
            system, temperature, top_p, max_new_tokens, seed, thinking, reasoning_budget
        )
        for _ in self._run(visitor, chat, chat.pending.pop(0), options):
            yield chat.messages(), gr.skip()
        yield chat.messages(), self.models.draw(seen, chat.conversation)

    def ask(
        self,
        message: dict[str, Any],
        system: str,
        temperature: float,
        top_p: float,
        max_new_tokens: float,
        seed: float | None,
        thinking: bool,
        reasoning_budget: float | None,
        request: gr.Request,
    ) -> Iterator[tuple[str, Update]]:
        """Ask the next question of this client's conversation; files stay in it.

        Yields the answer so far; at last also its details: ``reasoning``, whether what was read
        before was ``reused``, the ``ledger`` and the ``evidence``.
        """
        visitor, chat = self._enter(request)
        text, files = self._read(visitor, message)
        asked = Turn(question=text, media=files)
        options = AnswerControls.options(
            system, temperature, top_p, max_new_tokens, seed, thinking, reasoning_budget
        )
        for turn in self._run(visitor, chat, asked, options):
            yield turn.answer, gr.skip()
        turn, reply = chat.conversation.turns[-1], chat.conversation.reply
        if reply is None:
            raise gr.Error(turn.error or STOPPED, print_exception=False)
        details = {
            "reasoning": turn.reasoning,
            "reused": chat.conversation.is_reused,
            "ledger": reply.ledger.to_dict(),
            "evidence": reply.evidence,
        }
        yield turn.answer, json.loads(self.visitors.without_folder(json.dumps(details)))

    def _run(
        self, visitor: Visitor, chat: Chat, asked: Turn, options: dict[str, Any]
    ) -> Iterator[Turn]:
        """Answer a question; yield its turn when there is more to show."""
        pieces = chat.conversation.stream(asked.question, *asked.media, **options)
        turn = chat.conversation.turns[-1]
        shown = time.monotonic()
        chat.is_answering = True
        try:
            for _ in self.models.run(self.visitors.reading(pieces), visitor.start(NAME)):
                if time.monotonic() - shown >= UPDATE_SECONDS:
                    yield turn
                    shown = time.monotonic()
        except OmniError:
            turn.error = self.visitors.without_folder(turn.error)
        except Exception:
            # A file that no decoder foresaw must not end the conversation; the log has the rest.
            logger.exception("A question failed")
            turn.error = "The server failed at this question; its log says more. Ask another."
        finally:
            chat.is_answering = False

    def stop(self, kept: Any, request: gr.Request) -> tuple[Update, Update, Update]:
        """End all answers, wherever the model is, and be ready for the next question."""
        visitor, chat = self._enter(request)
        visitor.stop(NAME)
        chat.stop()
        return chat.messages(), _ready(), with_saved(kept, chat)

    def settle(self, kept: Any, request: gr.Request) -> tuple[Update, Update, Update]:
        """After an answer: be ready for the next question, unless one waits, and save."""
        _, chat = self._enter(request)
        return chat.messages(), _busy() if chat.is_busy else _ready(), with_saved(kept, chat)

    # ---------------------------------------------------------------- conversations

    def start_anew(self, request: gr.Request) -> tuple[Update, Update, Update]:
        """Begin a new conversation; the one before stays saved in the browser."""
        visitor, chat = self._enter(request)
        visitor.stop(NAME)
        visitor.things[NAME] = Chat(conversation=Conversation(chat.conversation.assistant))
        return [], _ready(), EMPTY

    def open(
        self, saved_id: str | None, kept: Any, request: gr.Request
    ) -> tuple[Update, Update, Update]:
        """Go on with a conversation that the browser saved."""
        visitor, chat = self._enter(request)
        for saved in saved_ones(kept):
            if saved["id"] == saved_id:
                opened = open_saved(saved, Conversation(chat.conversation.assistant))
                if opened is not None:
                    visitor.things[NAME] = opened
                    return opened.messages(), _ready(), EMPTY
        return gr.skip(), gr.skip(), gr.skip()


def _first(index: Any) -> int:
    """Gradio's index of a message; of a part of one, that of the message."""
    return int(index[0] if isinstance(index, list | tuple) else index)


def _waiting() -> Update:
    """The box to write in, emptied, with a button to stop."""
    return gr.MultimodalTextbox(value=None, submit_btn=False, stop_btn=True)


def _busy() -> Update:
    """The box to write in, as it was, with a button to stop."""
    return gr.MultimodalTextbox(submit_btn=False, stop_btn=True)


def _ready() -> Update:
    """The box to write in, as it was, with a button to send."""
    return gr.MultimodalTextbox(submit_btn=True, stop_btn=False)


def _list_saved(kept: Any) -> Update:
    return gr.Dropdown(choices=saved_names(kept), value=None)
