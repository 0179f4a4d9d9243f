"""Native steps are PyTorch's steps, whatever the decoder; what they cannot take, PyTorch does."""

import copy
import stat
import threading

import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook

from omni.backbone.cache import KeyValueState
from omni.backbone.moe import lay_columns
from omni.backbone.native import library, table
from omni.backbone.native.library import Library, UnavailableError
from omni.quantization import QuantizationConfig, quantize_weights
from omni.quantization.modules import (
    QuantizedExperts,
    QuantizedLinear,
    QuantizedWeight,
    choose_format,
)
from tests.support.backbone import tiny_model
from tests.support.native import HAS_COMPILER, default_dtype, forget_library, needs_compiler

# Widths that the kernels of int8 and int4 read: multiples of 16 and of a group.
READABLE = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "mamba_num_heads": 4,
    "mamba_head_dim": 16,
    "moe_intermediate_size": 96,
    "moe_shared_expert_intermediate_size": 64,
}
STEPS = 70  # behind a prompt of 9: past the first buffer of keys, which holds 64

# Relative to the norm of the scores of a position: another order of summation, measured 2e-6.
FLOAT_ERROR = 1e-4
# PyTorch rounds activations to bfloat16 (4e-3), native steps to 16 bits of the largest: measured
# 1e-2 between them, and more where that tips the choice of an expert: hence the median.
ROUNDED_ERROR = 3e-2
# Activations in 16 bits of the largest: 3e-5 for one product, 2e-4 measured for the decoder.
INTEGER_ERROR = 2e-3

VARIANTS = {
    "plain": {},
    "odd widths": {"hidden_size": 18, "moe_intermediate_size": 13, "vocab_size": 37},
    "biases": {"mlp_bias": True, "use_bias": True, "use_conv_bias": False},
    "other activations": {"mlp_hidden_act": "gelu", "mamba_hidden_act": "relu"},
    "latent experts": {"moe_latent_size": 10},
    "groups of experts": {"n_group": 4, "topk_group": 2, "norm_topk_prob": False},
    "one head of keys": {"num_key_value_heads": 1, "n_groups": 1, "conv_kernel": 2},
}


def build(kind="float32", **fields):
    """A tiny decoder of every kind of layer, two of each kind that remembers."""
    model = tiny_model("ME*-M*E", **(READABLE | fields)).requires_grad_(False)
    if kind in ("int8", "int4"):
        quantize_weights(model, QuantizationConfig(bits=int(kind.removeprefix("int"))))
    elif kind == "columns":
        lay_columns(model)
    return model


@torch.no_grad()
def run(model, prompt, ids, *, native=True):
    """Scores of the ids, token by token behind the prompt."""
    model.model.native.is_wanted = native
    cache = model.new_cache()
    model(prompt, cache=cache, logits_to_keep=1)
    return torch.cat([model(token, cache=cache).logits for token in ids.split(1, dim=1)], dim=1)


def ids_of(model, rows=1, length=STEPS):
    vocab = model.config.vocab_size
    return torch.randint(vocab, (rows, 9)), torch.randint(vocab, (rows, length))


def errors(found, expected):
    return (found - expected).norm(dim=-1) / expected.norm(dim=-1)


def assert_native(model):
    assert model.model.native.reason == ""
    assert model.model.native.is_in_use


@pytest.fixture(autouse=True, scope="module")
def built():
    """The library, built before the first test that needs it, however busy the machine."""
    return Library.get() if HAS_COMPILER else None


@pytest.fixture
def threads(monkeypatch):
    """Sets the number of threads, which then run however little there is to do."""
    before = torch.get_num_threads()
    monkeypatch.setattr(table, "BYTES_OF_A_THREAD", 1)
    yield torch.set_num_threads
    torch.set_num_threads(before)


# -------------------------------------------------------------------------------- they are equal


@needs_compiler
@pytest.mark.parametrize("variant", VARIANTS)
def test_steps_are_those_of_pytorch_and_of_a_whole_forward_call(variant, threads):
    threads(3)
    model = tiny_model("ME*-M*E", **VARIANTS[variant]).requires_grad_(False)
    prompt, ids = ids_of(model)
    found = run(model, prompt, ids)
    assert_native(model)
    assert errors(found, run(model, prompt, ids, native=False)).max() < FLOAT_ERROR
    whole = model(torch.cat([prompt, ids], dim=1)).logits[:, 9:]
    assert errors(found, whole).max() < FLOAT_ERROR


@needs_compiler
@pytest.mark.parametrize("kind", ["columns", "int8", "int4"])
def test_stored_formats_give_the_steps_of_pytorch(kind):
    model = build(kind)
    prompt, ids = ids_of(model)
    found = run(model, prompt, ids)
    assert_native(model)
    error = errors(found, run(model, prompt, ids, native=False))
    assert 0 < error.median() < (FLOAT_ERROR if kind == "columns" else ROUNDED_ERROR)


@needs_compiler
@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("fields", [{}, {"moe_intermediate_size": 80}], ids=["", "half a block"])
def test_int8_and_int4_are_products_with_the_float_weights_that_they_stand_for(kind, fields):
    check_integers(kind, fields)


def check_integers(kind, fields):
    model, plain = build(kind, **fields), build(**fields)
    read_back(model, plain)
    prompt, ids = ids_of(model)
    model.model.native.is_wanted = plain.model.native.is_wanted = False
    cache, plain_cache = model.new_cache(), plain.new_cache()
    model(prompt, cache=cache)
    # Prompts round more: start both from the same states.
    plain.get_input_embeddings().weight.copy_(model.get_input_embeddings().weight.float())
    plain_cache.load_tensors(cache.snapshot().tensors(), 9)
    model.model.native.is_wanted = True
    for token in ids.split(1, dim=1):
        found, expected = model(token, cache=cache), plain(token, cache=plain_cache)
        assert errors(found.logits, expected.logits).max() < INTEGER_ERROR
    assert_native(model)


def read_back(model, plain):
    """Give a float model the weights that those of a quantised one stand for."""
    for name, module in model.named_modules():
        target = plain.get_submodule(name) if "_proj" not in name.split("experts.")[-1] else None
        if isinstance(module, QuantizedLinear):
            plain.get_submodule(name).weight.copy_(meant(module))
        elif isinstance(module, QuantizedExperts):
            target.up_proj.copy_(meant(module.up_proj))
            target.down_proj.copy_(meant(module.down_proj))


def meant(weight: QuantizedWeight):
    if weight.is_int8:
        return weight.weight.float() * weight.row_scale.float()[..., None]
    halves = torch.cat([weight.weight & 15, weight.weight >> 4], dim=-1).float() - 8
    values = halves.transpose(-1, -2).flatten(-3, -2)  # (..., n, k)
    scales = weight.group_scale[..., 0].float().transpose(-1, -2)  # (..., n, k / G)
    scaled = values * scales.repeat_interleave(weight.form.group_size, dim=-1)
    return scaled[..., : weight.shape[-2], :]


@needs_compiler
def test_weights_may_lie_in_a_mapped_file(tmp_path):
    model = build("int4")
    prompt, ids = ids_of(model, length=5)
    expected = run(model, prompt, ids)
    for number, module in enumerate(m for m in model.modules() if isinstance(m, QuantizedWeight)):
        file, weight = tmp_path / str(number), module.weight
        file.write_bytes(weight.numpy().tobytes())
        mapped = torch.from_file(str(file), size=weight.numel(), dtype=weight.dtype)
        module.weight = mapped.view(weight.shape)
    assert torch.equal(run(model, prompt, ids), expected)
    assert_native(model)


@needs_compiler
def test_more_threads_than_heads_or_cores_share_the_same_work(threads):
    model = build()
    prompt, ids = ids_of(model)
    threads(1)
    expected = run(model, prompt, ids)
    threads(7)
    assert errors(run(model, prompt, ids), expected).max() < FLOAT_ERROR
    assert_native(model)


# --------------------------------------------------------------------------------------- states


@needs_compiler
@torch.no_grad()
def test_a_snapshot_between_two_steps_is_not_written_to():
    model = build()
    prompt, ids = ids_of(model)
    run(model, prompt, ids[:, :1])  # the first step of all is taken twice
    cache = model.new_cache()
    model(prompt, cache=cache)
    model(ids[:, :1], cache=cache)
    start = cache.snapshot()
    kept = start.tensors()
    once = [model(token, cache=cache).logits for token in ids[:, 1:4].split(1, dim=1)]
    assert all(torch.equal(tensor, kept[name]) for name, tensor in start.tensors().items())
    cache.restore(start)
    again = [model(token, cache=cache).logits for token in ids[:, 1:4].split(1, dim=1)]
    assert torch.equal(torch.stack(once), torch.stack(again))
    assert_native(model)


@needs_compiler
@torch.no_grad()
def test_the_first_step_of_all_gives_its_room_back_too():
    """It is taken twice; what continues behind a snapshot later must not have to copy its keys."""
    model = build()
    prompt, ids = ids_of(model)
    reader = model.new_cache(32)
    model(prompt, cache=reader)
    start = reader.snapshot()
    logs = [state.keys for state in start.layers if isinstance(state, KeyValueState)]
    for _ in range(2):
        cache = model.new_cache(1)
        cache.restore(start)
        for token in ids[:, :4].split(1, dim=1):
            model(token, cache=cache)
        now = [state.keys for state in cache.layers if isinstance(state, KeyValueState)]
        assert all(log.data is old.data for log, old in zip(now, logs, strict=True))
        cache.rewind(start)
        assert [log.filled for log in logs] == [[prompt.shape[1]]] * len(logs)
    assert_native(model)


@needs_compiler
@torch.no_grad()
def test_pytorch_and_the_library_may_take_turns():
    model = build()
    prompt, ids = ids_of(model, length=12)
    expected = run(model, prompt, ids)
    cache = model.new_cache()
    model(prompt, cache=cache)
    for index, token in enumerate(ids.split(1, dim=1)):
        model.model.native.is_wanted = index % 3 > 0
        found = model(token, cache=cache).logits
        assert errors(found, expected[:, index : index + 1]).max() < FLOAT_ERROR


@needs_compiler
def test_threads_with_caches_of_their_own_may_share_a_model():
    model = build()
    prompts, ids = ids_of(model, rows=3, length=30)
    expected = [run(model, prompts[i : i + 1], ids[i : i + 1]) for i in range(3)]
    found = [None] * 3

    def decode(i):
        found[i] = run(model, prompts[i : i + 1], ids[i : i + 1])

    writers = [threading.Thread(target=decode, args=(i,)) for i in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    assert_native(model)


@needs_compiler
def test_rows_of_a_batch_padding_and_prompts_are_left_to_pytorch():
    model = build()
    prompt, ids = ids_of(model, rows=3, length=4)
    run(model, prompt[:1], ids[:1])
    batch = run(model, prompt, ids)
    assert torch.equal(batch, run(model, prompt, ids, native=False))
    for row in range(3):
        alone = run(model, prompt[row : row + 1], ids[row : row + 1])
        assert errors(alone, batch[row : row + 1]).max() < FLOAT_ERROR

    mask = torch.ones(1, 9, dtype=torch.bool)
    mask[:, :3] = False
    expected = run(model, prompt[:1, 3:], ids[:1])
    cache = model.new_cache()
    with torch.no_grad():
        model.model.native.is_wanted = True
        model(prompt[:1], attention_mask=mask, cache=cache)
        found = [model(token, cache=cache).logits for token in ids[:1].split(1, dim=1)]
    assert errors(torch.cat(found, dim=1), expected).max() < FLOAT_ERROR


# ------------------------------------------------------------------------- models that change


def scaled(module):
    """A copy with other weights."""
    copied = copy.deepcopy(module)
    for weight in copied.parameters():
        weight.mul_(1.5)
    return copied


@needs_compiler
def test_weights_that_are_written_to_moved_or_replaced_are_those_of_the_next_step():
    model = build()
    prompt, ids = ids_of(model, length=3)
    run(model, prompt, ids)
    attention = model.model.layers[2].mixer  # until the layers are replaced, below
    changes = [
        lambda: attention.o_proj.weight.mul_(2),
        lambda: setattr(attention.o_proj.weight, "data", attention.o_proj.weight * 2),
        lambda: setattr(model.model.layers[1].mixer.gate, "num_experts_per_tok", 3),
        lambda: setattr(model.model, "norm_f", scaled(model.model.norm_f)),
        lambda: setattr(model.model, "layers", scaled(model.model.layers)),
        lambda: setattr(attention.o_proj, "bias", torch.nn.Parameter(torch.ones(64))),
        lambda: setattr(model.lm_head, "bias", torch.nn.Parameter(torch.ones(40))),
        lambda: setattr(model.lm_head, "weight", torch.nn.Parameter(model.lm_head.weight * 3)),
        lambda: lay_columns(model),
    ]
    for change in changes:
        with torch.no_grad():
            change()
        found = run(model, prompt, ids)
        assert_native(model)
        assert errors(found, run(model, prompt, ids, native=False)).max() < FLOAT_ERROR


@needs_compiler
def test_hooks_are_called_though_they_came_between_two_steps():
    model = build()
    prompt, ids = ids_of(model, length=4)
    expected = run(model, prompt, ids)
    seen = []
    handle = model.model.layers[3].mixer.register_forward_hook(lambda *_: seen.append(1))
    assert errors(run(model, prompt, ids), expected).max() < FLOAT_ERROR
    assert len(seen) == 5  # the prompt and every step
    handle.remove()
    assert torch.equal(run(model, prompt, ids), expected)
    assert len(seen) == 5
    head = model.lm_head.register_forward_hook(lambda *_: seen.append(1))
    run(model, prompt, ids)
    assert len(seen) == 10
    head.remove()
    everywhere = register_module_forward_hook(lambda *_: seen.append(1))
    try:
        assert errors(run(model, prompt, ids), expected).max() < FLOAT_ERROR
        assert len(seen) > 10 + 5 * len(model.model.layers)
    finally:
        everywhere.remove()


@needs_compiler
def test_an_adapter_is_used_from_the_step_on_that_it_is_there():
    from peft import LoraConfig, inject_adapter_in_model

    model = build()
    prompt, ids = ids_of(model, length=4)
    plain = run(model, prompt, ids)
    lora = LoraConfig(target_modules=["o_proj"], init_lora_weights=False)
    inject_adapter_in_model(lora, model)
    adapted = run(model, prompt, ids)
    assert "not known to the library" in model.model.native.reason
    assert torch.equal(adapted, run(model, prompt, ids, native=False))
    assert errors(adapted, plain).min() > 1e-2


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_are_left_to_pytorch(dtype):
    model = build().to(dtype)
    prompt, ids = ids_of(model, length=3)
    assert torch.equal(run(model, prompt, ids), run(model, prompt, ids, native=False))
    assert not model.model.native.is_in_use


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_another_default_type_changes_nothing(dtype):
    model = build()
    prompt, ids = ids_of(model, length=3)
    expected = run(model, prompt, ids)
    with default_dtype(dtype):
        assert torch.equal(run(model, prompt, ids), expected)


@needs_compiler
@pytest.mark.parametrize("width", [16, 128])
@torch.no_grad()
def test_embeddings_of_another_width_are_an_error_at_the_first_and_at_later_steps(width):
    model = build()
    prompt, ids = ids_of(model, length=3)
    for _ in range(2):
        cache = model.new_cache()
        model(prompt, cache=cache)
        with pytest.raises(RuntimeError, match="size of tensor"):
            model.model(inputs_embeds=torch.zeros(1, 1, width), cache=cache)
        run(model, prompt, ids)


@needs_compiler
@torch.no_grad()
def test_a_first_step_that_is_not_finite_proves_nothing():
    model = build()
    prompt, ids = ids_of(model, length=3)
    cache = model.new_cache()
    model(prompt, cache=cache)
    odd = model.model(inputs_embeds=torch.full((1, 1, 64), torch.nan), cache=cache)
    assert odd.last_hidden_state.isnan().all()
    assert not model.model.native.is_in_use
    run(model, prompt, ids)
    assert_native(model)


@needs_compiler
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_large_sums_of_one_sign_do_not_overflow(kind):
    width = 2688
    layer = torch.nn.Linear(width, 16, bias=False)
    layer.weight.data.fill_(1)
    form = choose_format(int(kind.removeprefix("int")), width)
    quantised = QuantizedLinear(form, layer)
    quantised.load(layer.weight)
    y, x = torch.empty(16), torch.full((1, width), 2.0)
    head = table.Head(quantised)
    Library.get().product(head.address, x.data_ptr(), y.data_ptr(), 1)
    torch.testing.assert_close(y, torch.full((16,), 2.0 * width), rtol=1e-2, atol=0)


@needs_compiler
@torch.no_grad()
def test_hidden_states_of_a_step_are_those_of_pytorch():
    model = build()
    prompt, ids = ids_of(model, length=2)
    run(model, prompt, ids)
    cache = model.new_cache()
    model(prompt, cache=cache)
    output = model(ids[:, :1], cache=cache, output_hidden_states=True)
    assert len(output.hidden_states) == 8


@needs_compiler
def test_a_copy_of_a_model_takes_steps_of_its_own():
    model = build()
    prompt, ids = ids_of(model, length=3)
    expected = run(model, prompt, ids)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        model.model.norm_f.weight.zero_()
    assert torch.equal(run(twin, prompt, ids), expected)
    assert_native(twin)


# ----------------------------------------------------------------------------- when they are wrong


class Wrong:
    """A library whose steps leave the result as it is."""

    def step(self, *arguments):
        pass


def test_wrong_results_are_refused_and_the_step_is_that_of_pytorch(monkeypatch):
    monkeypatch.setattr(Library, "get", classmethod(lambda cls, wait_s=0: Wrong()))
    monkeypatch.setattr("torch.empty_like", torch.zeros_like)
    model = build()
    prompt, ids = ids_of(model)
    expected = run(model, prompt, ids, native=False)
    with pytest.warns(UserWarning, match="Native decoding steps are not used.*differ by 1.0e"):
        found = run(model, prompt, ids)
    assert torch.equal(found, expected)
    with pytest.warns(UserWarning, match="differ by 1.0e"):
        assert not build().compile_step()


# ------------------------------------------------------------------------------------ the library


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(library.SWITCH, raising=False)
    return tmp_path / "omni-toolkit" / "native"


@pytest.fixture
def unavailable(monkeypatch):
    """See `forget_library`."""
    forget_library(monkeypatch)


def test_without_a_compiler_steps_are_pytorchs_and_nothing_is_said(unavailable, folder):
    model = build()
    prompt, ids = ids_of(model, length=3)
    assert torch.equal(run(model, prompt, ids), run(model, prompt, ids, native=False))
    assert "no C++ compiler 'no-such-compiler' was found" in model.model.native.reason


def test_whoever_asks_for_compiled_steps_is_told_why_there_are_none(unavailable, folder):
    with pytest.warns(UserWarning, match=r"no C\+\+ compiler 'no-such-compiler' was found"):
        assert not build().compile_step()
    with pytest.warns(UserWarning, match="the model is on meta; only steps on a CPU"):
        assert not build().to("meta").compile_step()


def test_steps_can_be_turned_off(monkeypatch, folder):
    monkeypatch.setenv(library.SWITCH, "off")
    with pytest.raises(UnavailableError, match="OMNI_NATIVE is 'off'"):
        library.load_or_build()
    model = build()
    assert not model.compile_step(is_wanted=False)
    prompt, ids = ids_of(model, length=3)
    cache = model.new_cache()
    with torch.no_grad():
        for part in (prompt, ids[:, :1]):
            model(part, cache=cache)
    assert not model.model.native.is_in_use


def test_a_compiler_that_fails_is_quoted(monkeypatch, folder, tmp_path):
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\necho 'error: no such option' >&2\nexit 1\n")
    compiler.chmod(0o700)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(UnavailableError, match=r"c\+\+ failed: error: no such option"):
        library.load_or_build()
    assert list(folder.iterdir()) == []


@pytest.fixture
def copier(tmp_path, monkeypatch):
    """A compiler that gives the library which is there already, at once."""
    compiler, done = tmp_path / "c++", tmp_path / "done.so"
    done.write_bytes(library.file_of(library.command()).read_bytes()[: -library.DIGEST_BYTES])
    compiler.write_text(f'#!/bin/sh\nfor last; do :; done\ncp {done} "$last"\n')
    compiler.chmod(0o700)
    monkeypatch.setenv("CXX", str(compiler))


@needs_compiler
def test_a_library_is_built_once_and_built_again_when_it_is_broken(copier, folder):
    library.load_or_build()
    [file] = folder.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == stat.S_IMODE(file.stat().st_mode) == 0o700
    whole, built = file.read_bytes(), file.stat().st_mtime_ns
    library.load_or_build()
    assert file.stat().st_mtime_ns == built
    for broken in (whole[: len(whole) // 2], b"", whole[:-1] + b"?"):
        file.unlink()  # the one that is loaded must not be written to
        file.write_bytes(broken)
        library.load_or_build()
        assert library._is_whole(file)
    assert [path.name for path in folder.iterdir()] == [file.name]


@needs_compiler
@pytest.mark.slow  # compiles
@pytest.mark.parametrize("missing", ["__AVX512VNNI__", "__AVX512VBMI__"])
def test_processors_with_fewer_instructions_take_the_same_steps(missing, folder, monkeypatch):
    arguments = [*library.command(), f"-U{missing}"]
    monkeypatch.setattr(library, "command", lambda: arguments)
    built = library.load_or_build()
    monkeypatch.setattr(Library, "get", classmethod(lambda cls, wait_s=0: built))
    for kind in ("int8", "int4"):
        check_integers(kind, {})


@needs_compiler
def test_several_may_build_at_once(copier, folder):
    failures = []

    def build_one():
        try:
            library.load_or_build()
        except (OSError, UnavailableError) as error:
            failures.append(error)

    builders = [threading.Thread(target=build_one) for _ in range(3)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join()
    assert failures == []
    assert len(list(folder.iterdir())) == 1


@needs_compiler
def test_nothing_is_loaded_from_where_others_may_write(folder):
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    with pytest.raises(UnavailableError, match="others may write to"):
        library.load_or_build()


@needs_compiler
def test_a_folder_that_cannot_be_made_leaves_steps_to_pytorch(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    forget_library(monkeypatch)
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UnavailableError, match="cannot be built or kept"):
        Library.get()


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch):
    forget_library(monkeypatch)
    monkeypatch.setattr(library, "command", lambda: ["/bin/sh"])
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(library.Path, "home", no_home)
    with pytest.raises(UnavailableError, match="Set HOME or XDG_CACHE_HOME"):
        Library.get()
