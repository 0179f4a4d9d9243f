"""The command line, in this process; a random tiny model stands in for the embedded one."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image as PILImage

from omni import cli
from tests.support import tiny_omni
from tests.support.media import write_pdf
from tests.support.native import forget_library


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    assistant = tiny_omni.assistant()
    assistant.model.save_pretrained(directory)
    assistant.processor.save_pretrained(directory)
    return directory


CUT = "the answer was ended by --max-new-tokens; raise it for more\n"


@pytest.fixture
def picture(tmp_path) -> Path:
    path = tmp_path / "picture.png"
    PILImage.fromarray(tiny_omni.picture(40, 60)).save(path)
    return path


@pytest.fixture
def run(monkeypatch, capsys):
    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["omni", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_ask_prints_the_answer_and_nothing_else(run, model_dir, picture):
    code, out, err = run("ask", "What?", picture, "--model", model_dir, "--max-new-tokens", 5)
    assert code == 0
    assert err == CUT
    expected = tiny_omni.assistant().ask("What?", picture, max_new_tokens=5).text
    assert out == expected + "\n"


@pytest.mark.parametrize("command", [("ask", "What?"), ("chat",)], ids=["ask", "chat"])
def test_compile_that_cannot_be_says_so_and_goes_on(command, run, model_dir, monkeypatch):
    forget_library(monkeypatch)
    monkeypatch.setattr("builtins.input", lambda *_: "")
    with pytest.warns(UserWarning, match=r"no C\+\+ compiler 'no-such-compiler' was found"):
        code, _, _ = run(*command, "--model", model_dir, "--max-new-tokens", 2, "--compile")
    assert code == 0


def test_ask_json_is_one_object_with_answer_ledger_model_and_version(run, model_dir, picture):
    arguments = ("--model", model_dir, "--max-new-tokens", 5, "--json")
    code, out, _ = run("ask", "What?", picture, *arguments)
    assert code == 0
    found = json.loads(out)
    assert set(found) == {"answer", "finish_reason", "ledger", "model", "version"}
    assert found["finish_reason"] == "length"
    [medium] = found["ledger"]["media"]
    assert medium["name"] == str(picture)
    assert [stage["name"] for stage in medium["stages"]] == [
        "patches",
        "pixel_shuffle(0.5)",
        "prompt",
    ]
    assert set(medium["seconds"]) == {"decode", "encode", "reduce"}


def test_ask_by_a_schema_is_json_with_its_values(run, model_dir, picture, tmp_path):
    (tmp_path / "digit.json").write_text('{"type": "integer", "minimum": 0, "maximum": 9}')
    arguments = ("--model", model_dir, "--schema", tmp_path / "digit.json")
    code, out, _ = run("ask", "Which?", picture, *arguments, "--json")
    assert code == 0
    assert json.loads(out)["parsed"] == json.loads(json.loads(out)["answer"]) in range(10)
    code, out, err = run("ask", "Which?", picture, "--model", model_dir, "--schema", "nowhere.json")
    assert (code, out) == (2, "")
    assert "nowhere.json: no schema can be read there" in err


def test_batch_asks_the_fields_of_a_form(run, model_dir, picture, tmp_path):
    (tmp_path / "form.yaml").write_text("digit: {question: 'Which?', choices: [1, 2]}\nwhat: What?")
    out = tmp_path / "fields.jsonl"
    form = ("--questions", tmp_path / "form.yaml", "--out", out, "--max-new-tokens", 5)
    assert run("batch", picture, "--model", model_dir, *form)[0] == 0
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [record["field"] for record in found] == ["digit", "what"]
    assert found[0]["parsed"] in (1, 2)


def test_ask_writes_a_report_beside_the_answer(run, model_dir, picture, tmp_path):
    page = tmp_path / "out.html"
    arguments = ("--model", model_dir, "--max-new-tokens", 5, "--report", page)
    code, out, err = run("ask", "What is <this>?", picture, *arguments)
    assert (code, err) == (0, CUT)
    assert out == run("ask", "What is <this>?", picture, *arguments[:4])[1]
    assert "What is &lt;this&gt;?" in page.read_text(encoding="utf-8")
    code, out, _ = run("ask", "What is <this>?", picture, *arguments, "--json")
    assert json.loads(out)["report"] == str(page)
    before = picture.read_bytes()
    code, _, err = run("ask", "What?", picture, *arguments[:4], "--report", picture)
    assert code == 2
    assert "is one of the files; name another" in err
    assert picture.read_bytes() == before


def test_a_report_that_cannot_be_written_is_refused_before_the_model_is_loaded(
    run, picture, tmp_path, monkeypatch
):
    monkeypatch.setattr("omni.load", lambda *_, **__: pytest.fail("the model was loaded"))
    code, out, err = run("ask", "What?", picture, "--report", tmp_path / "nowhere" / "out.html")
    assert (code, out) == (2, "")
    assert "nowhere, which does not exist" in err


def test_plan_counts_without_running_the_model(run, model_dir, picture, monkeypatch):
    from omni.model import OmniModel

    monkeypatch.setattr(OmniModel, "forward", lambda *_, **__: pytest.fail("the model ran"))
    code, out, _ = run("plan", "What?", picture, "--model", model_dir, "--json")
    assert code == 0
    ledger = json.loads(out)["ledger"]
    assert (
        ledger["prompt_tokens"] == ledger["text_tokens"] + ledger["media"][0]["stages"][-1]["count"]
    )
    code, out, _ = run("plan", "What?", picture, "--model", model_dir)
    assert code == 0
    assert "picture.png" in out


def test_image_tokens_bound_the_plan(run, model_dir, picture):
    def tokens(*flags):
        _, out, _ = run("plan", "What?", picture, "--model", model_dir, "--json", *flags)
        return json.loads(out)["ledger"]["media"][0]["stages"][-1]["count"]

    whole = tokens()
    assert tokens("--image-tokens", whole) == whole
    assert tokens("--image-tokens", whole - 1) < whole


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_ask_says_in_one_line_on_stderr_what_a_budget_lowered(run, model_dir, picture, flags):
    needed = tiny_omni.assistant().plan("What?", picture, max_new_tokens=5).prompt_tokens + 5
    budget = ("--max-tokens", needed - 1, "--max-new-tokens", 5)
    code, _, err = run("ask", "What?", picture, "--model", model_dir, *budget, *flags)
    assert code == 0
    lowered = r"lowered to fit the budget: picture\.png: reduction identity → uniform\(0\.\d+\)\n"
    assert re.fullmatch(lowered + CUT, err)


def test_chat_says_what_a_budget_lowered_and_what_it_refuses(run, model_dir, picture, monkeypatch):
    lines = iter(["What?", "And?", ""])
    monkeypatch.setattr("builtins.input", lambda *_: next(lines))
    needed = tiny_omni.assistant().plan("What?", picture, max_new_tokens=5).prompt_tokens + 5
    budget = ("--max-tokens", needed - 1, "--max-new-tokens", 5)
    code, _, err = run("chat", picture, "--model", model_dir, *budget)
    assert code == 0
    assert "lowered to fit the budget: picture.png: reduction identity → uniform(" in err
    assert f"but the budget is {needed - 1} tokens" in err  # the second turn is too long


def test_doctor_reports_every_group(run):
    code, out, _ = run("doctor", "--json")
    assert code == 0
    groups = {finding["group"] for finding in json.loads(out)["findings"]}
    assert groups == {"versions", "compute", "kernels", "decoders", "memory"}
    assert run("doctor")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nothere.png",), "nothere.png"),
        (("--reduce", "video"), "not of the form MODALITY=SPEC"),
        (("--reduce", "video=evz(0.5)"), "evs"),
        (("--max-tokens", 3), "budget is 3"),
        (("--temperature", -1), "temperature is -1"),
        (("--seed", 10**20), f"seed is {10**20}"),
        (("--fps", 0), "fps is 0.0"),
        (("--fps", "nan"), "fps is nan"),
        (("--dpi", 0), "dpi is 0"),
        (("--num-frames", 0), "num_frames is 0"),
        (("--device", "abacus"), "device is 'abacus', which cannot be used here"),
        (("--reduce", "audio=avg_pool(2)", "--reduce", "audio=silence()"), "has audio twice"),
    ],
)
def test_an_error_is_one_line_on_stderr_and_exit_code_2(run, model_dir, arguments, message):
    video = ()
    if "video=evz(0.5)" in arguments:
        video = (Path(__file__).parents[2] / "examples" / "media" / "clip.mp4",)
    code, out, err = run("ask", "What?", *video, *arguments, "--model", model_dir)
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize("command", ["ask", "plan"])
def test_a_page_too_large_to_render_is_refused_before(run, model_dir, tmp_path, command):
    page = write_pdf(tmp_path / "page.pdf", [["A page"]])
    code, _, err = run(command, "What?", page, "--dpi", 100_000, "--model", model_dir)
    assert code == 2
    assert "page.pdf (or lower dpi)" in err


def test_a_checkpoint_that_is_none_is_one_line_too(run, tmp_path):
    code, _, err = run("ask", "What?", "--model", tmp_path)
    assert code == 2
    assert "config.json" in err
    assert err.count("\n") == 1


def test_chat_keeps_the_conversation_and_survives_a_bad_file(run, model_dir, picture, monkeypatch):
    lines = iter(["/file nothere.png", "What?", f"/file {picture}", "And this?", "Again?", ""])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    code, out, err = run("chat", "--model", model_dir, "--max-new-tokens", 4)
    assert code == 0
    assert out.count("\n") >= 2
    assert "Not sent: nothere.png. /file PATH adds those you want again." in err


@pytest.mark.parametrize("verb", ["ask", "chat", "plan", "doctor"])
def test_help_of_every_verb_says_what_it_does(run, verb):
    code, out, _ = run(verb, "--help")
    assert code == 0
    assert "Usage" in out


def test_a_broken_pipe_is_no_traceback(model_dir):
    code = "from omni.cli import main; import sys; sys.argv = ['omni', 'doctor']; main()"
    process = subprocess.run(
        f"{sys.executable} -c {code!r} | true",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in process.stderr


def test_batch_writes_results_and_its_exit_code_says_whether_all_were_answered(
    run, model_dir, picture, tmp_path
):
    out = tmp_path / "results.jsonl"
    arguments = ("--question", "What?", "--model", model_dir, "--max-new-tokens", 5, "--out", out)
    code, printed, _ = run("batch", tmp_path, *arguments, "--json")
    assert code == 0
    found = json.loads(printed)
    assert (found["items"], found["answered"], found["failed"]) == (1, 1, 0)
    [record] = map(json.loads, out.read_text().splitlines())
    assert record["item"] == str(picture)
    assert record["answer"] == tiny_omni.assistant().ask("What?", picture, max_new_tokens=5).text

    (tmp_path / "broken.png").write_bytes(picture.read_bytes()[:60])
    code, printed, err = run("batch", tmp_path, *arguments)
    assert code == 1
    assert "CorruptMediaError" in printed
    assert "error" not in err

    code, _, err = run("batch", tmp_path / "nowhere", *arguments)
    assert (code, err.count("\n")) == (2, 1)
    assert "no such file; expected a folder" in err
    code, _, err = run("batch", tmp_path, *arguments, "--chunk", "soon")
    assert code == 2
    assert "A chunk of 'soon' was asked for" in err
