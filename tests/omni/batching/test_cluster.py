"""On a local Ray with two actors: the file is that of one process, also if an actor is killed."""

import json
import os
import signal
import sys
import types

import pytest

import omni
from omni.batching.cluster import Answers
from omni.errors import RequestError
from tests.support import media as samples
from tests.support import tiny_omni

QUESTIONS = ["What?", "A longer question, where?"]
OPTIONS = {"max_new_tokens": 4, "batch_size": 1}
STORE_BYTES = 200 * 2**20


class Mortal(Answers):
    """Kills its process at its first batch, once."""

    marker = ""

    def __call__(self, batch):
        marker = os.environ["OMNI_TEST_MARKER"]
        if not os.path.exists(marker):
            open(marker, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(batch)


@pytest.fixture(scope="module")
def ray(tmp_path_factory):
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'omni-toolkit[ray]'")
    marker = tmp_path_factory.mktemp("marker") / "killed"
    ray.init(
        num_cpus=2,
        object_store_memory=STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={
            "env_vars": {
                "OMNI_TEST_MARKER": str(marker),
                "PYTHONPATH": os.pathsep.join(["", *sys.path]).lstrip(os.pathsep),
                "OMP_NUM_THREADS": "1",
            }
        },
    )
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("items")
    for number in range(5):
        pixels = tiny_omni.picture(16 + 8 * number, 24, seed=number)
        samples.write_image(folder / f"picture{number}.png", pixels)
    (folder / "damaged.png").write_bytes((folder / "picture0.png").read_bytes()[:40])
    samples.write_wav(folder / "tone.wav", samples.sine(0.5))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    assistant = tiny_omni.assistant()
    assistant.model.save_pretrained(directory)
    assistant.processor.save_pretrained(directory)
    return str(directory)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_file_is_that_of_the_local_engine_even_if_an_actor_is_killed(
    ray, folder, model, tmp_path, monkeypatch
):
    local, remote = tmp_path / "local.jsonl", tmp_path / "ray.jsonl"
    list(omni.batch(folder, QUESTIONS, model=model, out=local, **OPTIONS))
    options = {"model": model, "engine": "ray", "workers": 2, **OPTIONS}
    run = omni.batch(folder, QUESTIONS, out=remote, **options)
    assert len(list(run)) == 2 * 7
    assert (run.summary.items, run.summary.failed) == (7, 2)
    assert remote.read_bytes() == local.read_bytes()

    from omni.batching import cluster

    monkeypatch.setattr(cluster, "Answers", Mortal)
    again = tmp_path / "again.jsonl"
    list(omni.batch(folder, QUESTIONS, out=again, **options))
    assert os.path.exists(ray.get(ray.remote(lambda: os.environ["OMNI_TEST_MARKER"]).remote()))
    assert again.read_bytes() == local.read_bytes()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_callable_works_in_a_map_batches_of_ones_own(ray, folder, model):
    rows = [{"path": str(folder / f"picture{n}.png"), "mine": n} for n in range(2)]
    answered = ray.data.from_items(rows).map_batches(
        Answers,
        fn_constructor_args=["What?"],
        fn_constructor_kwargs={"model": model, **OPTIONS},
        concurrency=1,
        batch_size=2,
        num_cpus=1,
    )
    found = [json.loads(row["record"]) for row in answered.take_all()]
    expected = list(omni.batch(rows, "What?", model=model, **OPTIONS))
    assert sorted(found, key=lambda r: r["item"]) == expected
    assert [record["row"] for record in expected] == [{"mine": 0}, {"mine": 1}]


def test_without_ray_the_error_says_how_to_get_it(monkeypatch, folder):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RequestError, match=r"pip install 'omni-toolkit\[ray\]'"):
        omni.batch(folder, "What?", engine="ray")


def test_a_file_that_is_there_stays_as_it_is(monkeypatch, folder, tmp_path):
    for name in ("ray", "ray.data"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    out = tmp_path / "notes.jsonl"
    out.write_text("mine")
    with pytest.raises(RequestError, match=r"notes.jsonl is there, and engine='ray' keeps no"):
        omni.batch(folder, "What?", engine="ray", out=out)
    assert out.read_text() == "mine"


def test_an_unknown_engine_is_refused(folder):
    with pytest.raises(RequestError, match="engine is 'dask'; expected 'local' or 'ray'"):
        omni.batch(folder, "What?", engine="dask")
