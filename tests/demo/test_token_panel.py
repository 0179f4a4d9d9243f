"""The controls of tokens mean options of the assistant; samples are those of the examples."""

from pathlib import Path

import pytest

import demo.samples
from demo.samples import FOLDER, Sample, choose
from demo.token_panel import MODELS_OWN, read_options
from tests.support import tiny_omni

EXAMPLES = Path(__file__).parents[2] / "examples" / "media"
UNTOUCHED = {
    "max_tokens": 0,
    "max_new_tokens": 64,
    "dpi": 0,
    "image_tokens": 0,
    "fps": 0,
    "num_frames": 0,
    "audio_in_video": False,
    "image_reducer": MODELS_OWN,
    "image_rate": 0.5,
    "video_reducer": MODELS_OWN,
    "video_rate": 0.5,
    "audio_reducer": MODELS_OWN,
    "audio_rate": 0.5,
}


def test_untouched_controls_ask_for_nothing_but_the_length_of_the_answer():
    assert read_options(UNTOUCHED) == {"max_new_tokens": 64}


def test_every_control_becomes_its_option():
    touched = {
        "max_tokens": 512.0,
        "dpi": 96,
        "image_tokens": 64.0,
        "fps": 2.5,
        "num_frames": 8,
        "audio_in_video": True,
        "video_reducer": "evs",
        "video_rate": 0.75,
    }
    assert read_options(UNTOUCHED | touched) == {
        "max_tokens": 512,
        "max_new_tokens": 64,
        "dpi": 96,
        "image_tokens": 64,
        "num_frames": 8,
        "fps": 2.5,
        "audio_in_video": True,
        "reduction": {"video": "evs(0.75)"},
    }


def test_the_assistant_takes_all_of_them():
    everything = {name: value or 24 for name, value in UNTOUCHED.items()}
    everything |= {"max_tokens": 2048, "audio_in_video": True, "fps": 4}
    everything |= {f"{kind}_reducer": "uniform" for kind in ("image", "video", "audio")}
    plan = tiny_omni.assistant().plan("?", EXAMPLES / "clip.mp4", **read_options(everything))
    assert plan.media[0].chosen["reduction"] == "uniform(0.5)"


SHIPPED = sorted(path.name for path in FOLDER.iterdir())
OFFERED = [sample for sample in vars(demo.samples).values() if isinstance(sample, Sample)]


@pytest.mark.parametrize("name", SHIPPED)
def test_files_that_ship_are_the_examples(name):
    assert (FOLDER / name).read_bytes() == (EXAMPLES / name).read_bytes()


def test_every_file_that_ships_is_offered_and_copied_for_visitors(tmp_path):
    assert {sample.file for sample in OFFERED} == set(SHIPPED)
    for sample in OFFERED:
        path, question = choose(sample, tmp_path)()
        assert Path(path).is_relative_to(tmp_path)
        assert Path(path).read_bytes() == (FOLDER / sample.file).read_bytes()
        assert question == sample.question
