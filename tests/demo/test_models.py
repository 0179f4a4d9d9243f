"""Only models that were named at the start can be chosen, and each says what it cannot do."""

import gc
import json
import shutil
import weakref
from pathlib import Path

import pytest

import omni
from demo.app import build_app
from demo.chat import chat_of
from demo.model_card import limits, summary
from demo.models import MAX_LOADED, Choice, Models
from demo.visitors import Visitors
from omni import assistant as assistant_module
from omni.assistant import EMBEDDED_PATH
from omni.cli_options import load_assistant
from omni.errors import CheckpointError

EXAMPLES = Path(__file__).parents[2] / "examples" / "media"


def test_the_embedded_model_says_what_its_card_says() -> None:
    models = Models()
    loaded = models.get()
    assert loaded is models.get(models.default)
    assert loaded.title.startswith("omni-tiny · 12.7 million parameters")
    assert "**not** a general assistant" in loaded.summary
    card = (EMBEDDED_PATH / "README.md").read_text()
    for section in ("What it can do, measured", "What it cannot do", "Some of its mistakes"):
        text = card.split(f"## {section}\n")[1].split("\n## ")[0].strip()
        assert text.split("\n![")[0].strip() in loaded.limits
    assert "Training data and licences" not in loaded.limits


def test_pictures_beside_the_card_are_not_asked_for_by_the_page(tmp_path) -> None:
    text = "# m\n\n## Its mistakes\n\none\n\n![a sheet of (some) mistakes](mistakes.png)\n\ntwo\n"
    (tmp_path / "README.md").write_text(text)
    assert limits(tmp_path) == "### Its mistakes\n\none\n\n\ntwo"


def test_a_checkpoint_without_a_card_says_so(tmp_path) -> None:
    assert "no model card" in limits(tmp_path)
    assert summary(tmp_path) == ""
    (tmp_path / "README.md").write_text("# Name\n\nA model\nof mine.\n\n## Training\n\nLong.\n")
    assert "does not say what its limits are" in limits(tmp_path)
    assert summary(tmp_path) == "A model of mine."


def test_models_of_a_folder_can_be_chosen_and_no_others(tmp_path) -> None:
    for name in ("first", "second"):
        shutil.copytree(EMBEDDED_PATH, tmp_path / "models" / name)
    outside = shutil.copytree(EMBEDDED_PATH, tmp_path / "outside")
    adapter = tmp_path / "models" / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": None}))
    models = Models(folders=[tmp_path / "models"])
    assert models.model_names == ["omni-tiny", "first", "second"]
    assert models.adapter_names == ["none", "adapter"]
    loaded = models.get(Choice(model="second"))
    assert loaded.assistant.name == "second"
    assert loaded.directory == tmp_path / "models" / "second"
    for name in (str(outside), "owner/name", "../outside"):
        with pytest.raises(CheckpointError, match="not among the models of this demo"):
            models.get(Choice(model=name))
    with pytest.raises(CheckpointError, match="'other' is not among the adapters"):
        models.get(Choice(model="first", adapter="other"))
    networked = Models(folders=[tmp_path / "models"], allow_network=True)
    with pytest.raises(CheckpointError, match="is a path; only directories that were named"):
        networked.get(Choice(model=str(outside)))


def test_no_more_models_stay_loaded_than_fit(tmp_path) -> None:
    names = [f"model{number}" for number in range(MAX_LOADED + 1)]
    for name in names:
        (tmp_path / name).symlink_to(EMBEDDED_PATH)
    models = Models(folders=[tmp_path])
    first, *others = (models.get(Choice(model=name)) for name in names)
    assert models.get(Choice(model=names[-1])) is others[-1]
    assert models.get(Choice(model=names[0])) is not first


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # gradio's loops
def test_visitors_let_go_of_a_model_that_is_unloaded(tmp_path) -> None:
    names = [f"model{number}" for number in range(MAX_LOADED + 1)]
    for name in names:
        (tmp_path / name).symlink_to(EMBEDDED_PATH)
    models, visitors = Models(folders=[tmp_path]), Visitors(tmp_path)
    build_app(models, visitors)
    chats, alive = [], []
    for name in names:
        visitor = visitors.of(name)
        visitor.choice = Choice(model=name)
        chats.append(chat_of(visitor, models))
        chats[-1].conversation.ask("What are you?", EXAMPLES / "digit.png", max_new_tokens=2)
        alive.append(weakref.ref(chats[-1].conversation.assistant))
    gc.collect()
    assert [found() is not None for found in alive] == [False] + [True] * MAX_LOADED
    again = chat_of(visitors.of(names[0]), models)  # turns are still there, and go on
    assert again is chats[0]
    assert [turn.question for turn in again.turns] == ["What are you?"]
    assert again.conversation.ask("And now?", max_new_tokens=2).text


def test_folders_of_one_name_stay_apart(tmp_path) -> None:
    for place in ("x/model", "y/model", "x/omni-tiny"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).symlink_to(EMBEDDED_PATH)
    folders = [tmp_path / "x", tmp_path / "y", tmp_path / "x"]
    models = Models(folders=folders)
    assert models.model_names == ["omni-tiny", "model", "x/omni-tiny", "y/model"]
    assert models.get().directory == EMBEDDED_PATH
    assert models.get(Choice(model="y/model")).directory == tmp_path / "y" / "model"
    first = Models(str(tmp_path / "y" / "model"), folders=folders)
    assert first.default.model == "y/model"
    assert len(first.model_names) == 4


def test_an_adapter_comes_with_its_base(tmp_path) -> None:
    base = shutil.copytree(EMBEDDED_PATH, tmp_path / "base")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    facts = {"base_model_name_or_path": str(base)}
    (adapter / "adapter_config.json").write_text(json.dumps(facts))
    assert Models(adapter=str(adapter)).default == Choice(model="base", adapter="adapter")
    assert Models("other", str(adapter)).default.model == "other"


def test_a_folder_of_the_name_of_the_embedded_model_is_that_folder(tmp_path, monkeypatch) -> None:
    shutil.copytree(EMBEDDED_PATH, tmp_path / "omni-tiny")
    monkeypatch.chdir(tmp_path)
    seen = []
    monkeypatch.setattr(assistant_module, "resolve_checkpoint", lambda p, **_: seen.append(p) or p)
    load_assistant("./omni-tiny", None)
    load_assistant("omni-tiny", None)
    assert seen == [Path("omni-tiny")] * 2
    omni.load("omni-tiny")
    assert len(seen) == 2


def test_a_folder_that_is_none_is_refused(tmp_path) -> None:
    with pytest.raises(CheckpointError, match="missing is not a directory"):
        Models(folders=[tmp_path / "missing"])
