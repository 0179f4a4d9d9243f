"""The files that ship with the demo, to be tried with one click."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import gradio as gr

FOLDER = Path(__file__).with_name("samples")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A file and a question that `omni-tiny` was trained for.

    Attributes:
        file: Name of the file.
        question: What to ask about it.
    """

    file: str
    question: str

    @property
    def label(self) -> str:
        """What the button says."""
        return f"{self.file}: {self.question}"

    def copy_to(self, folder: Path) -> Path:
        """A copy below the upload folder, since visitors are shown no other files.

        Args:
            folder: The server's upload folder.
        """
        copy = folder / "samples" / self.file
        if not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(FOLDER / self.file, copy)
        return copy


DIGIT = Sample(file="digit.png", question="Which digit is written here?")
CLIP = Sample(file="clip.mp4", question="In which direction does the shape move?")
COLOUR = Sample(file="clip.mp4", question="Which colour is the shape?")
WORD = Sample(file="recording.wav", question="Which word do you hear?")
WORDS = Sample(file="words.flac", question="Which word do you hear?")
TICKET = Sample(file="ticket.pdf", question="What is printed here?")
PAGES_TEXT = Sample(file="pages.pdf", question="What is printed here?")
PAGES_SHAPE = Sample(file="pages.pdf", question="What is drawn here?")


def draw_samples(samples: Sequence[Sample]) -> list[tuple[gr.Button, Sample]]:
    """Draw one button a sample.

    Args:
        samples: What can be tried.
    """
    with gr.Row():
        return [
            (gr.Button(sample.label, size="sm", min_width=200, elem_classes="sample"), sample)
            for sample in samples
        ]


def choose(sample: Sample, folder: Path) -> Callable[[], tuple[str, str]]:
    """What a button does: gives the file and the question.

    Args:
        sample: Which.
        folder: The server's upload folder.
    """

    def chosen() -> tuple[str, str]:
        return str(sample.copy_to(folder)), sample.question

    return chosen
