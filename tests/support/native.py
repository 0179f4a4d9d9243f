"""A process that has not looked for the library of native steps yet, and will find no compiler."""

import pytest

from omni.backbone.native import library


def forget_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the next step look for the library anew, without a compiler."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.delenv(library.SWITCH, raising=False)
    monkeypatch.setattr(library, "_thread", None)
    monkeypatch.setattr(library, "_found", "")
