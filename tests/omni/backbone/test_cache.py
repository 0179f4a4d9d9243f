import pytest
import torch

from omni.backbone import HybridCache
from omni.backbone.cache import MIN_CAPACITY, AppendLog, KeyValueState
from omni.errors import RequestError
from tests.support.backbone import tiny_model


@pytest.fixture(scope="module")
def model():
    return tiny_model("ME*M")


def read(model, cache, ids):
    with torch.no_grad():
        return model(ids, cache=cache).logits


def test_later_steps_do_not_alter_a_snapshot(model):
    ids = torch.randint(40, (2, 12))
    cache = model.new_cache()
    read(model, cache, ids[:, :5])
    point = cache.snapshot()
    first = [read(model, cache, ids[:, t : t + 1]) for t in range(5, 9)]
    read(model, cache, ids[:, 9:])
    for _ in range(2):  # any number of times
        cache.restore(point)
        assert cache.get_seq_length() == 5
        again = [read(model, cache, ids[:, t : t + 1]) for t in range(5, 9)]
        assert torch.equal(torch.cat(again), torch.cat(first))


def test_branches_from_one_snapshot_do_not_disturb_each_other(model):
    prompt, a, b = torch.randint(40, (3, 1, 6))
    trunk = model.new_cache()
    read(model, trunk, prompt)
    point = trunk.snapshot()
    branches = {"a": model.new_cache(), "b": model.new_cache()}
    for branch in branches.values():
        branch.restore(point)
    steps = {"a": [], "b": []}
    for t in range(6):  # in turns
        steps["a"].append(read(model, branches["a"], a[:, t : t + 1]))
        steps["b"].append(read(model, branches["b"], b[:, t : t + 1]))
    for name, tail in (("a", a), ("b", b)):
        alone = read(model, None, torch.cat([prompt, tail], dim=1))[:, 6:]
        torch.testing.assert_close(torch.cat(steps[name], 1), alone, rtol=1e-4, atol=1e-4)


def test_a_snapshot_of_keys_shares_their_memory_until_somebody_branches():
    log = AppendLog(dim=1)
    log.append(torch.arange(6).view(2, 3))
    cache = HybridCache(["full_attention"])
    state = cache.layers[0]
    state.append(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4))
    fork = cache.snapshot().layers[0]
    assert fork.keys.data is state.keys.data
    state.append(torch.ones(1, 2, 1, 4), torch.ones(1, 2, 1, 4))  # the first to continue
    assert fork.keys.data is state.keys.data
    fork.append(torch.ones(1, 2, 1, 4) * 2, torch.ones(1, 2, 1, 4))  # the second one copies
    assert fork.keys.data is not state.keys.data
    assert state.keys.view()[..., -1, :].eq(1).all()


def test_appending_copies_the_past_rarely():
    log, buffers = AppendLog(dim=1), set()
    for value in range(1000):
        log.append(torch.tensor([[value]]))
        buffers.add(log.data.data_ptr())
    assert log.view().tolist() == [list(range(1000))]
    assert len(buffers) <= 2 + (1000 // MIN_CAPACITY).bit_length()


def test_a_cache_whose_length_was_foretold_never_copies_the_past(model):
    ids = torch.randint(40, (2, 100))
    cache, buffers = model.new_cache(capacity=100), set()
    for part in ids.split(30, dim=1):
        read(model, cache, part)
        buffers.add(cache.layers[2].keys.data.data_ptr())
        buffers.add(cache.layers[2].values.data.data_ptr())
    assert len(buffers) == 2


def test_a_cache_outgrows_what_was_foretold(model):
    ids = torch.randint(40, (2, 9))
    cache = model.new_cache(capacity=4)
    steps = [read(model, cache, part) for part in ids.split(3, dim=1)]
    torch.testing.assert_close(torch.cat(steps, 1), read(model, None, ids), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("is_native", [True, False])
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("modes", [(True, False, True, False), (False, True, False, True)])
def test_a_cache_goes_in_and_out_of_inference_mode(modes, rows, is_native):
    model = tiny_model("ME*M")
    model.model.native.is_wanted = is_native
    ids = torch.randint(40, (rows, 11))
    mask = torch.ones(rows, 11, dtype=torch.bool)
    mask[1:, 1] = False  # the cache of two rows keeps a mask
    expected = model(ids, attention_mask=mask).logits

    def go_on(cache, part, mode):
        for t in range(5 + 2 * part, 7 + 2 * part):
            with torch.inference_mode(mode), torch.no_grad():
                found = model(ids[:, t : t + 1], cache=cache).logits
            # Float32 sums in another order: measured 1.5e-6.
            torch.testing.assert_close(found[:, 0], expected[:, t], rtol=0, atol=1e-4)

    cache, fork = model.new_cache(), model.new_cache()
    with torch.inference_mode(modes[0]), torch.no_grad():
        model(ids[:, :5], attention_mask=mask[:, :5], cache=cache)
    buffer = cache.layers[2].keys.data
    fork.restore(cache.snapshot())
    for part, mode in enumerate(modes[1:]):
        go_on(cache, part, mode)
    assert cache.layers[2].keys.data is buffer  # no copy of the past for the mode's sake
    for part, mode in enumerate(modes[1:]):
        fork.select(list(range(rows)))
        go_on(fork, part, mode)


def test_selected_rows_continue_as_if_they_were_alone(model):
    ids = torch.randint(40, (3, 8))
    mask = torch.ones(3, 8, dtype=torch.bool)
    mask[0, :3] = False
    cache = model.new_cache()
    with torch.no_grad():
        model(ids[:, :7], attention_mask=mask[:, :7], cache=cache)
        cache.select([2, 0, 2])
        found = model(ids[[2, 0, 2], 7:], attention_mask=mask[[2, 0, 2], 7:], cache=cache).logits
        alone = model(ids[:1, 3:]).logits[:, -1:]
        whole = model(ids[2:]).logits[:, -1:]
    # Float32 sums in another order; single steps against one forward measured 3.5e-6.
    torch.testing.assert_close(found, torch.cat([whole, alone, whole]), rtol=0, atol=1e-4)


def test_the_state_is_float32_whatever_the_model_is(model):
    half = tiny_model("M*").bfloat16()
    cache = half.new_cache()
    half(torch.randint(40, (1, 5)), cache=cache)
    half(torch.randint(40, (1, 1)), cache=cache)
    assert cache.layers[0].ssm_state.dtype == torch.float32
    assert cache.layers[1].keys.view().dtype == torch.bfloat16


def test_a_snapshot_of_another_model_is_refused(model):
    cache = model.new_cache()
    snapshot = HybridCache(["linear_attention"]).snapshot()
    with pytest.raises(RequestError, match="holds 1 layers but the cache has 4"):
        cache.restore(snapshot)


def keys_of(cache):
    return next(layer.keys for layer in cache.layers if isinstance(layer, KeyValueState))


def test_who_rewinds_lets_the_next_write_to_the_same_place(model):
    prompt, a, b = torch.randint(40, (3, 1, 6))
    trunk = model.new_cache()
    read(model, trunk, prompt)
    point = trunk.snapshot()
    place = keys_of(trunk).data
    for tail in (a, b, a):
        branch = model.new_cache()
        branch.restore(point)
        found = read(model, branch, tail)
        assert keys_of(branch).data is place
        branch.rewind(point)
        assert branch.get_seq_length() == 6
        alone = read(model, None, torch.cat([prompt, tail], dim=1))[:, 6:]
        torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-4)


def test_a_rewind_does_not_free_what_another_has_written(model):
    prompt, a, b = torch.randint(40, (3, 1, 6))
    trunk = model.new_cache()
    read(model, trunk, prompt)
    point = trunk.snapshot()
    first, second, third = (model.new_cache() for _ in range(3))
    for branch in (first, second, third):
        branch.restore(point)
    read(model, first, a[:, :3])  # in place
    read(model, second, b[:, :3])  # in a copy
    second.rewind(point)
    read(model, third, b)  # in a copy: the place is still taken
    assert keys_of(third).data is not keys_of(first).data
    found = read(model, first, a[:, 3:])
    alone = read(model, None, torch.cat([prompt, a], dim=1))[:, 9:]
    torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-4)


def test_stored_states_continue_as_the_cache_does(model):
    prompt, tail = torch.randint(40, (2, 1, 6))
    cache = model.new_cache()
    read(model, cache, prompt)
    stored = cache.snapshot().tensors()
    again = model.new_cache(20)
    again.load_tensors(stored, 6)
    assert again.get_seq_length() == 6
    assert torch.equal(read(model, again, tail), read(model, cache, tail))


def test_stored_states_that_do_not_fit_are_refused(model):
    cache = model.new_cache()
    read(model, cache, torch.randint(40, (1, 6)))
    stored = cache.snapshot().tensors()
    with pytest.raises(RequestError, match=r"keys of \[6\] positions .* expected 7"):
        model.new_cache().load_tensors(stored, 7)
    with pytest.raises(RequestError, match=r"unknown tensors \['9.keys'\]"):
        model.new_cache().load_tensors({**stored, "9.keys": torch.zeros(1)}, 6)
    del stored["2.values"]
    with pytest.raises(RequestError, match=r"no tensor '2\.values'"):
        model.new_cache().load_tensors(stored, 6)
