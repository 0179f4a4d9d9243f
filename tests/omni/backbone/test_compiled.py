import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from omni.backbone.compiled import compile_step
from tests.support.backbone import tiny_model

COMPILER = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")

# Relative to the norm of the scores of a position. Float32: another order of summation, measured
# 2e-6 at worst. The rest rounds activations to bfloat16 (4e-3) at other places, measured 5e-3 to
# 1e-2, and more where that tips the choice of an expert: hence the median. Wrong steps: near 1.
WORST = {"float32": 1e-4, "columns": 1e-4}
MEDIAN = {**WORST, "bfloat16": 3e-2, "int8": 3e-2, "int4": 3e-2}


@pytest.mark.slow  # compiles for 10 seconds
@pytest.mark.skipif(
    shutil.which(COMPILER) is None,
    reason=f"NO C++ COMPILER {COMPILER!r}: COMPILED STEPS ARE NOT TESTED. Install g++.",
)
@pytest.mark.parametrize("kind", MEDIAN)
def test_compiled_steps_equal_eager_ones_and_compile_nothing_more_as_an_answer_grows(kind):
    command = [sys.executable, "-m", "tests.support.compiled_steps", kind]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["compiled"]
    assert 0 < found["median"] < MEDIAN[kind]  # 0 would mean that nothing was compiled
    assert found["worst"] < WORST.get(kind, 2.0)
    assert found["batch_is_equal"]  # several rows are left eager
    assert found["snapshot_is_kept"]
    assert found["restored_repeats"]
    assert found["graphs"] == 6  # Mamba, MoE, MLP, attention's two halves, head
    assert found["graphs_after"] == found["graphs"]
    assert found["graph_breaks"] == []


def test_without_a_compiler_a_warning_says_so_and_the_model_stays_eager(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    model = tiny_model()
    with pytest.warns(UserWarning, match=r"no C\+\+ compiler 'no-such-compiler' was found"):
        assert not model.compile_step()
    assert model.model.compiled is None


def test_on_other_devices_nothing_is_compiled():
    model = tiny_model().to("meta")
    with pytest.warns(UserWarning, match="the model is on meta; only steps on a CPU"):
        assert not compile_step(model)


def test_wrong_scores_are_refused(monkeypatch):
    class Wrong:
        def takes(self, hidden, mask, past):
            return past > 0

        def block(self, block, hidden, visible, state):
            return hidden

        def score(self, head, hidden):
            return torch.full((1, 1, 40), 3.0)

    monkeypatch.setenv("CXX", sys.executable)
    monkeypatch.setattr("omni.backbone.compiled.CompiledStep", Wrong)
    model = tiny_model()
    with pytest.warns(UserWarning, match="its scores differ by"):
        assert not model.compile_step()
    assert model.model.compiled is None
