"""Options of a batch that would make every record an error are refused before anything runs."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from omni.assistant import Assistant
from omni.batching.questions import Question
from omni.choosing import GenerationOptions
from omni.errors import RequestError
from omni.inputs import Modality
from omni.options import MediaOptions
from omni.reduction import check_reduction
from omni.towers import needs_attention


def check_options(
    assistant: Assistant,
    questions: Iterable[Question],
    options: Mapping[str, Any],
    *,
    is_cached: bool,
) -> tuple[MediaOptions, GenerationOptions]:
    """Sort the options of a batch to where they belong.

    Args:
        assistant: Who answers.
        questions: Whose schemas are checked, too.
        options: Those of `Assistant.chat`.
        is_cached: Whether features are kept in a folder.

    Raises:
        RequestError: A value is out of bounds, a reduction unknown or not to be cached, or nothing
            can be answered by a schema.
        TypeError: A name is unknown.
    """
    media, generation = assistant.read_options(options)
    modalities: tuple[Modality, ...] = ("image", "video", "audio")
    for modality in modalities:
        if modality not in media.reduction:
            continue
        spec = media.reduction[modality]
        check_reduction(spec, modality, assistant.model.config)
        if is_cached and needs_attention(spec):
            raise RequestError(
                f"Reduction {spec!r} for {modality} asks what the tower attends to, which a cache "
                "does not keep. Leave cache out, or choose another reduction."
            )
    for question in questions:
        if question.schema is not None:
            own = replace(generation, schema=question.schema)
            assistant.vocabulary.check_schema(own, bool(options.get("thinking")))
    return media, generation
