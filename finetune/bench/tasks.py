"""The tasks of `omni bench reduce`: those that omni-tiny claims, judged from 0 to 1.

Reading a line and naming a direction are the detail-sensitive ones: a few tokens carry the answer.
"""

from pathlib import Path

from finetune.bench.reduce import BenchCase, BenchTask
from finetune.tiny.abilities import ABILITIES
from finetune.tiny.cases import Case, make_cases
from finetune.tiny.score import score_answer
from finetune.tiny.turns import chat

MODALITY_OF = {
    "line": "image",
    "still": "image",
    "object": "image",
    "handwritten": "image",
    "direction": "video",
    "colour": "video",
    "dialogue": "video",
    "digit": "audio",
    "word": "audio",
    "digits": "audio",
}


def make_tasks(data: Path, names: list[str], limit: int) -> list[BenchTask]:
    """Make held-out cases.

    Args:
        data: Folder of the training data.
        names: Keys of `MODALITY_OF`.
        limit: Most cases a task.
    """
    cases = make_cases(data, limit, abilities=names)
    return [
        BenchTask(
            name=ABILITIES[name].name,
            modality=MODALITY_OF[name],
            cases=[_judged(case, is_error=ABILITIES[name].is_error) for case in cases[name]],
        )
        for name in names
    ]


def _judged(case: Case, *, is_error: bool) -> BenchCase:
    turn = case.turns[-1]

    def judge(answer: str) -> float:
        score = score_answer(turn, answer)
        return 1 - min(score, 1.0) if is_error else score

    return BenchCase(chat(case.sources, case.turns, answered=False), judge)
