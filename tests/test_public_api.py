import subprocess
import sys

import omni

PUBLIC = [
    "AlignmentError",
    "Assistant",
    "CheckpointError",
    "ConfigError",
    "ContextLengthError",
    "Conversation",
    "CorruptMediaError",
    "GenerationOptions",
    "Ledger",
    "MediaAccessError",
    "MediaError",
    "MediaLimitError",
    "MediaLimits",
    "MediaNotFoundError",
    "MediaOptions",
    "MediaTimeoutError",
    "NotEnoughMemoryError",
    "OmniConfig",
    "OmniError",
    "OmniInputs",
    "OmniModel",
    "OmniProcessor",
    "Reply",
    "RequestError",
    "SchemaError",
    "Session",
    "SessionError",
    "UnsupportedMediaError",
    "__version__",
    "batch",
    "load",
    "load_media",
    "load_session",
]


def test_the_public_surface_is_this_list():
    assert sorted(omni.__all__) == sorted(PUBLIC)
    for name in omni.__all__:
        assert getattr(omni, name) is not None


def test_every_error_has_one_root():
    errors = [name for name in PUBLIC if name.endswith("Error")]
    assert all(issubclass(getattr(omni, name), omni.OmniError) for name in errors)


def test_importing_omni_loads_neither_torch_nor_gradio_nor_peft():
    code = "import omni, sys; print([m for m in ('torch', 'gradio', 'peft') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
