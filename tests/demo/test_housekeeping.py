"""Of a visitor who has gone nothing stays, neither with us nor with gradio."""

import asyncio
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import gradio as gr
from gradio.state_holder import StateHolder

from demo.housekeeping import Housekeeper
from demo.models import Models
from demo.visitors import Visitors
from omni.stopping import Stop


def blocks() -> Any:
    """What a sweep touches of gradio's blocks."""
    return SimpleNamespace(
        state_holder=SimpleNamespace(session_data={}, time_last_used={}),
        _queue=SimpleNamespace(pending_messages_per_session={}, pending_event_ids_session={}),
    )


def test_those_who_left_together_are_swept_up_together_and_no_others() -> None:
    app = blocks()
    states, queue = app.state_holder, app._queue
    kept = [states.session_data, states.time_last_used, queue.pending_messages_per_session]
    for name in ("one", "two", "here"):
        for each in kept:
            each[name] = object()
        queue.pending_event_ids_session[name] = set()
    queue.pending_event_ids_session["two"] = {"still running"}
    housekeeper = Housekeeper(app, delay_s=0.2)
    threads = threading.active_count()
    for name in ("one", "two", "never seen"):
        housekeeper.note(name)
    assert threading.active_count() <= threads + 3
    deadline = time.monotonic() + 30
    while "one" in states.session_data:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    housekeeper.sweep()  # nothing is left to do
    assert all(set(each) == {"here"} for each in kept)
    assert queue.pending_event_ids_session == {"two": {"still running"}, "here": set()}


def test_gradio_keeps_no_session_of_a_visitor_who_has_gone(tmp_path) -> None:
    async def page_of_gradio() -> gr.Blocks:  # outside a loop, it would open some and close none
        with gr.Blocks(analytics_enabled=False) as page:
            gr.Textbox()
        StateHolder().set_blocks(page)  # as the web server does
        return page.queue()

    with ThreadPoolExecutor(1) as pool:  # a browser of other tests may have a loop in this thread
        page = pool.submit(asyncio.run, page_of_gradio()).result()
    visitors = Visitors(tmp_path)
    housekeeper = Housekeeper(page, delay_s=1000)
    visitors.on_forget = housekeeper.note
    state = weakref.ref(page.state_holder["gone"])
    assert page.state_holder["here"].blocks_config.blocks
    visitors.of("gone")
    visitors.forget("gone")
    housekeeper.sweep()
    assert list(page.state_holder.session_data) == ["here"]
    assert state() is None


def test_a_visitor_who_leaves_stops_what_is_being_answered(tmp_path) -> None:
    visitors = Visitors(tmp_path)
    visitor = visitors.of("one")
    stops = [visitor.start("chat"), visitor.start("video")]
    visitor.stop("chat")
    visitor.stop("audio")  # nothing is running there
    assert [stop.is_requested for stop in stops] == [True, False]
    visitors.forget("one")
    assert all(stop.is_requested for stop in stops)


class Kept:
    """A thing of a visitor that counts how often it was told to forget."""

    def __init__(self) -> None:
        self.times = 0

    def forget(self) -> None:
        self.times += 1


def test_media_stay_read_for_the_visitors_who_asked_last(tmp_path) -> None:
    visitors = Visitors(tmp_path)
    things = {}
    for number, name in enumerate(("first", "second", "third")):
        visitor = visitors.of(name)
        visitor.things["chat"] = things[name] = Kept()
        visitor.seen = time.monotonic() + number
    assert list(visitors.reading(iter(["a", "b"]), most=2)) == ["a", "b"]
    assert [things[name].times for name in things] == [1, 0, 0]


def test_models_run_on_one_thread_and_pictures_on_another() -> None:
    models = Models()
    name = threading.current_thread
    names = {models.draw(lambda: name().name) for _ in range(4)}
    names |= {models.work(lambda: name().name, stop=Stop()) for _ in range(4)}
    assert names == {"model_0", "drawing_0"}
    assert list(models.run(iter("abc"))) == ["a", "b", "c"]
    models.close()
