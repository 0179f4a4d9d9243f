import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

from omni.start_up import without_collection

ROOT = Path(__file__).parents[2]
RUN = """
import sys
from omni.cli import main

sys.argv[0] = "omni"
try:
    main()
except SystemExit:
    pass
print("\\n" + " ".join(sys.modules))
"""


def modules_of(*arguments: str) -> set[str]:
    """Names of all modules that `omni ARGUMENTS` has imported at its end."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    return set(done.stdout.splitlines()[-1].split())


def test_help_imports_nothing_that_computes():
    found = modules_of("--help")
    assert "omni.cli" in found
    assert not found & {"numpy", "torch", "transformers", "pydantic", "peft", "gradio", "av"}


@pytest.mark.slow
def test_a_question_about_a_picture_imports_nothing_for_other_media_or_other_verbs():
    found = modules_of(
        "ask", "Which digit is written here?", str(ROOT / "examples/media/digit.png")
    )
    assert {"torch", "omni.assistant"} <= found
    other_media = {"av", "decord", "pypdfium2"}
    other_verbs = {"gradio", "peft", "ray", "pyarrow"}
    other_requests = {"llguidance", "timm", "scipy", "sklearn", "pandas", "matplotlib"}
    assert not found & (other_media | other_verbs | other_requests)


def test_the_collector_rests_inside_and_is_back_after_an_error():
    assert gc.isenabled()
    inside = []

    def fail():
        with without_collection():
            inside.append(gc.isenabled())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert inside == [False]
    assert gc.isenabled()
    gc.unfreeze()


def test_a_collector_that_was_off_stays_off():
    gc.disable()
    try:
        with without_collection():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
        gc.unfreeze()
