"""Pages: what is asked stands there, where it is said to stand, and no split knows the other."""

import re
from collections import Counter

import numpy as np
import pytest
import torch

from encoders.vision.preprocessing import choose_image_grid
from finetune.guide import FACT, SAID_HEAD, SHOWN_HEAD
from finetune.tiny import documents, joint_pool, page_texts
from finetune.tiny.answers import conclusion
from finetune.tiny.audio_data import Clip
from finetune.tiny.documents import (
    HEIGHTS,
    LARGE_HEIGHT,
    LARGE_WIDTH,
    WIDTHS,
    random_page,
)
from finetune.tiny.drawing import random_still
from finetune.tiny.fonts import find_fonts
from finetune.tiny.joint_pool import EncodedDocument, EncodedProcessor, Pool, encode_subjects
from finetune.tiny.model_config import build_model, processor_settings
from finetune.tiny.page_cases import count_cases, document_cases
from finetune.tiny.page_questions import ask_page, ask_page_count, ask_receipt
from finetune.tiny.page_texts import KINDS, MAX_ROW, is_held_out, random_page_text
from finetune.tiny.paging import DPI, as_pdf
from finetune.tiny.printed import CHARACTERS
from finetune.tiny.score import score_answer
from finetune.tiny.sounded import random_sounded
from finetune.tiny.subjects import FPS, Subject, encode_clip
from finetune.tiny.tokenizer import build_tokenizer
from finetune.tiny.turns import Turn, chat, document_turns, pair_turn, turn_of, turns_about
from finetune.tiny.vision_data import MAX_PATCHES, MIN_PATCHES, image_grid
from omni.inputs import IGNORE_INDEX
from omni.media import load_media
from omni.processor import OmniProcessor

SEEDS = range(60)
ANSWER = "<|im_end|>\n<|im_start|>assistant\n<think></think>"
MOST_TOKENS = 110  # of a page
TOKENIZER = build_tokenizer()


@pytest.fixture(scope="module")
def drawn():
    fonts = find_fonts("train")
    return [random_page(np.random.default_rng(seed), fonts, "train") for seed in SEEDS]


def page_subject(seed):
    pixels, page = random_page(np.random.default_rng(seed), find_fonts("train"), "train")
    return Subject("page", load_media(np.ascontiguousarray(pixels)), {"page": page})


class Pages:
    """Subjects of which there are pages only."""

    def draw(self, task, rng):
        return page_subject(int(rng.integers(1000)))

    def page(self, rng):
        return self.draw("page", rng)


def marks_of(item, head):
    """Where what a head looks up is said, and the mark, in order."""
    marks = [mark for mark in item.facts.get(FACT, ()) if mark.head == head]
    return sorted((item.start + mark.query + 1, mark) for mark in marks)


def said_at(inputs, marks):
    return TOKENIZER.decode([int(inputs.input_ids[0, place]) for place, _ in sorted(marks)])


def letters(answer):
    """What of an answer is printed: not the signs behind its keys."""
    keys, _, value = answer.rpartition(": ")
    return keys.replace(", ", "") + value


@pytest.fixture(scope="module")
def towers():
    torch.manual_seed(0)
    return build_model(len(TOKENIZER))


def test_every_text_has_ink_within_its_box_and_no_text_is_outside_of_boxes(monkeypatch):
    monkeypatch.setattr(documents, "damage", lambda rng, picture: np.array(picture))
    monkeypatch.setattr(documents, "_draw_rules", lambda *args: None)
    monkeypatch.setattr(documents, "_draw_dots", lambda *args: None)
    for seed in SEEDS:
        pixels, page = random_page(np.random.default_rng(seed), find_fonts("train"), "train")
        has_ink = (np.abs(pixels.astype(int) - pixels[0, 0]) > 40).any(-1)
        boxes = np.zeros_like(has_ink)
        for text in page.printed:
            left, right = int(text.edges[0]), int(np.ceil(text.edges[-1]))
            top, bottom = int(text.top), int(text.bottom)
            assert has_ink[top:bottom, left:right].any(0).mean() > 0.3
            assert has_ink[top:bottom, left:right].any(1).mean() > 0.8
            boxes[top:bottom, max(left - 3, 0) : right + 3] = True  # slanted letters lean over
        assert not (has_ink & ~boxes).any()


def test_pages_are_of_their_size_and_within_their_tokens(drawn):
    for pixels, page in drawn:
        assert pixels.shape == (page.height, page.width, 3)
        assert HEIGHTS[0] <= page.height <= HEIGHTS[1]
        assert WIDTHS[0] <= page.width <= WIDTHS[1]
        for text in page.printed:
            assert 0 <= text.edges[0] < text.edges[-1] <= page.width
            assert 0 <= text.top < text.bottom <= page.height
        grid = choose_image_grid(
            page.height, page.width, min_patches=MIN_PATCHES, max_patches=MAX_PATCHES
        )
        assert grid[0] * grid[1] // 4 <= MOST_TOKENS


def test_large_pages_have_more_rows_in_print_as_large_and_fit_the_largest_picture(drawn):
    fonts = find_fonts("train")
    large = [random_page(np.random.default_rng(s), fonts, "train", large=True) for s in SEEDS]
    for pixels, page in large:
        assert pixels.shape == (page.height, page.width, 3)
        assert page.height <= LARGE_HEIGHT
        assert page.width <= LARGE_WIDTH
        rows, columns = image_grid(page.height, page.width)
        assert rows * columns < MAX_PATCHES  # nothing is shrunk

    def rows_of(page):
        return len({row.row.text for row in page.cells} or page.fields)

    def print_of(page):
        return page.title.bottom - page.title.top

    small = [page for _, page in drawn]
    more = [page for _, page in large]
    assert max(map(rows_of, small)) <= 6 < max(map(rows_of, more)) <= 12
    assert np.mean([rows_of(page) for page in more]) > 1.5 * np.mean(list(map(rows_of, small)))
    assert np.median(list(map(print_of, more))) > 0.8 * np.median(list(map(print_of, small)))


def test_a_seed_gives_the_same_page_again(drawn):
    again, page = random_page(np.random.default_rng(7), find_fonts("train"), "train")
    np.testing.assert_array_equal(again, drawn[7][0])
    assert [text.text for text in page.printed] == [text.text for text in drawn[7][1].printed]


def test_texts_are_short_rows_of_known_characters_with_distinct_names():
    kinds = Counter()
    for seed in range(200):
        text = random_page_text(np.random.default_rng(seed), "train")
        kinds[text.kind] += 1
        rows = [(field.name, field.value) for field in text.fields] or text.table
        assert 3 <= len(rows) <= 6
        assert all(len("  ".join(row)) <= 2 * MAX_ROW for row in rows)
        assert all(len(f"{f.name}: {f.value}") <= MAX_ROW for f in text.fields)
        assert set("".join((text.title, *map("".join, rows)))) <= set(CHARACTERS)
        names = [row[0].lower() for row in rows]
        assert len(set(names)) == len(names)
    assert set(kinds) == set(KINDS)


def test_words_of_one_split_are_never_those_of_the_other():
    words = {}
    for split in ("train", "validation"):
        texts = [random_page_text(np.random.default_rng(seed), split) for seed in range(200)]
        titles = {text.title.split()[0].lower() for text in texts}
        labels = {row[0].lower() for text in texts for row in text.table[1:]}
        words[split] = titles | labels
        assert all(is_held_out(word) == (split == "validation") for word in words[split])
    assert min(map(len, words.values())) > 100
    assert not words["train"] & words["validation"]


@pytest.mark.parametrize("known", [page_texts._GOODS, page_texts._PEOPLE, page_texts._TOWNS])
def test_each_list_has_words_of_both_splits(known):
    held_out = sum(map(is_held_out, known))
    assert 3 <= held_out <= len(known) - 10


def test_every_answer_is_printed_and_every_question_is_whole(drawn):
    tasks, questions = Counter(), set()
    for seed, (_, page) in enumerate(drawn):
        for number in (None, 0, 4):
            asked = ask_page(np.random.default_rng(seed), page, number)
            assert len(asked) == 1 + len(page.fields) + len(page.cells)
            for task, question, value, keys in asked:
                assert any(value is text for text in page.printed)
                assert len(keys) == {"title": 0, "field": 1, "cell": 2}[task]
                assert not set(question) & set("[]{}|")
                assert number is None or "page" in question.lower()
                assert score_answer(Turn(task, question, value.text), value.text) == 1
                tasks[task] += 1
                questions.add(question)
    assert set(tasks) == {"title", "field", "cell"}
    assert len(questions) > 0.8 * sum(tasks.values())


def test_a_date_is_asked_for_without_its_name_only_where_there_is_one(drawn):
    for seed, (_, page) in enumerate(drawn):
        dates = [f for f in page.fields if f.sort in ("date", "day")]
        for task, question, value, keys in ask_page(np.random.default_rng(seed), page):
            said = question.lower()
            if task == "field" and "date" in said and keys[0].text.rstrip(".").lower() not in said:
                assert len(dates) == 1
                assert dates[0].value is value


@pytest.mark.parametrize(
    ("heads", "is_clear"), [(("Price", "Cost"), False), (("Price", "No"), True)]
)
def test_what_a_thing_costs_is_asked_only_where_one_column_says_it(drawn, heads, is_clear):
    _, page = drawn[0]
    texts = [page.title._replace(text=text) for text in ("Tea", *heads, "1.20")]
    label, first, second, value = texts
    cells = tuple(documents.Cell(label, head, value) for head in (first, second))
    asked = [
        qa.question
        for seed in SEEDS
        for qa in ask_page(np.random.default_rng(seed), page._replace(fields=(), cells=cells))
        if qa.task == "cell"
    ]
    unnamed = [q for q in asked if not any(head.lower() in q.lower() for head in heads)]
    assert bool(unnamed) == is_clear


@pytest.mark.parametrize("count", range(1, 6))
def test_pages_are_counted_in_words(count):
    qa = ask_page_count(np.random.default_rng(count), count)
    assert "page" in qa.question.lower()
    shown = [part.medium for part in qa.parts if part.span and part.text != ", "]
    assert shown == list(range(count))
    turn = turn_of(qa)
    wrong = f"{turn.answer[:-1]} nine."
    assert [score_answer(turn, said) for said in (qa.answer, str(count), wrong)] == [1, 1, 0]


@pytest.mark.parametrize("sort", ["total", "date"])
def test_receipts_are_asked_in_many_wordings(sort):
    rng = np.random.default_rng(0)
    asked = {ask_receipt(rng, sort) for _ in range(200)}
    assert len(asked) > 60
    assert not any(sign in question for question in asked for sign in "[]{}|")


def test_marks_of_an_answer_point_at_the_cells_of_its_letters(towers, monkeypatch):
    monkeypatch.setattr(joint_pool, "MERGED_SHARE", 0.0)
    monkeypatch.setattr(joint_pool, "REASONED_SHARE", 0.0)
    processor = EncodedProcessor(TOKENIZER, towers.config, processor_settings())
    pool = Pool(Pages(), towers, processor, seed=0, capacity=0, shares={"page": 1.0})
    for seed in range(12):
        subject = page_subject(seed)
        encoded = encode_subjects(towers, processor.settings, [subject])
        [turn] = turns_about(np.random.default_rng(seed), subject)
        inputs = pool._inputs(encoded, [turn])
        [item], page = inputs.media, subject.facts["page"]
        height, width = item.grid[1] // 2, item.grid[2] // 2
        [value] = [t for t in page.printed if t.text == conclusion(turn.answer)][:1]
        marks = marks_of(item, SHOWN_HEAD)
        assert said_at(inputs, marks) == letters(turn.answer)
        for (_, mark), shown in zip(marks, filter(None, turn.shown), strict=True):
            left, right, top, bottom, *_ = shown.span
            rows, columns = zip(*(divmod(token, width) for token in mark.tokens), strict=True)
            assert min(columns) <= (left + right) / 2 * width <= max(columns) + 1
            assert min(rows) <= top * height
            assert max(rows) + 1 >= bottom * height
            assert (max(rows) + 1 - min(rows)) <= (value.bottom - value.top) / page.height * (
                height
            ) + 2


@pytest.mark.parametrize("seed", range(6))
def test_each_question_about_a_document_is_followed_by_its_own_answer(towers, monkeypatch, seed):
    monkeypatch.setattr(joint_pool, "MERGED_SHARE", 0.0)
    monkeypatch.setattr(joint_pool, "REASONED_SHARE", 0.0)
    processor = EncodedProcessor(TOKENIZER, towers.config, processor_settings())
    pool = Pool(Pages(), towers, processor, seed=0, capacity=0, shares={"page": 1.0})
    subjects = [page_subject(10 * seed + n) for n in range(2)]
    encoded = encode_subjects(towers, processor.settings, subjects)
    turns = document_turns(np.random.default_rng(seed), subjects, count=3)
    assert len({turn.answer for turn in turns}) == 3
    inputs = pool._inputs([EncodedDocument(tuple(encoded))], turns)
    said = TOKENIZER.decode(inputs.input_ids[0])
    for turn in turns:
        assert f"{turn.question}{ANSWER}{turn.answer}<|im_end|>" in said
    marks = [mark for item in inputs.media for mark in marks_of(item, SHOWN_HEAD)]
    assert said_at(inputs, marks) == "".join(
        letters(turn.answer) if turn.spelled else "One, two" for turn in turns
    )


def test_a_picture_among_pages_is_asked_about_by_the_number_of_its_page():
    pixels, facts = random_still(np.random.default_rng(0))
    still = Subject("still", load_media(np.ascontiguousarray(pixels)), facts)
    pages = [page_subject(1), still, page_subject(2)]
    tasks = set()
    for seed in range(40):
        for turn in document_turns(np.random.default_rng(seed), pages, count=3):
            of_picture = turn.task in ("colour", "shape", "shape_colour")
            assert ("page 2" in turn.question.lower()) == of_picture
            tasks.add(turn.task)
    assert {"count", "colour", "shape", "title"} <= tasks


def test_documents_of_the_pool_hold_pictures_now_and_then(towers):
    processor = EncodedProcessor(TOKENIZER, towers.config, processor_settings())
    pool = Pool(Pages(), towers, processor, seed=0, capacity=0, shares={"page": 1.0})
    pixels, facts = random_still(np.random.default_rng(0))
    still = Subject("still", load_media(np.ascontiguousarray(pixels)), facts)
    page, picture = encode_subjects(towers, processor.settings, [page_subject(1), still])
    pool.held = {"page": [page], "still": [picture]}
    drawn = [pool._page() for _ in range(200)]
    assert 30 < sum(one is picture for one in drawn) < 90
    pool.held = {"page": [page]}
    assert pool._page() is page


def test_keys_are_marked_where_their_question_spells_them(towers, monkeypatch):
    monkeypatch.setattr(joint_pool, "MERGED_SHARE", 0.0)
    monkeypatch.setattr(joint_pool, "REASONED_SHARE", 0.0)
    processor = EncodedProcessor(TOKENIZER, towers.config, processor_settings())
    pool = Pool(Pages(), towers, processor, seed=0, capacity=0, shares={"page": 1.0})
    num_found = 0
    for seed in range(20):
        subject = page_subject(seed)
        encoded = encode_subjects(towers, processor.settings, [subject])
        turns = turns_about(np.random.default_rng(seed), subject, count=4)
        inputs = pool._inputs(encoded, turns)
        [item] = inputs.media
        expected = ""
        for turn in turns:
            keys = turn.answer.rpartition(": ")[0].split(", ")
            asked = turn.question.lower()
            expected += "".join(
                k for k in keys if k and re.search(rf"\b{re.escape(k.lower())}(?!\w)", asked)
            )
        marks = marks_of(item, SAID_HEAD)
        assert said_at(inputs, marks) == expected
        for place, mark in marks:
            [token] = mark.tokens
            said, repeated = (
                TOKENIZER.decode([int(inputs.input_ids[0, p])]).lower()
                for p in (item.start + token, place)
            )
            assert repeated in said
        num_found += len(marks)
    assert num_found > 100


def test_marks_are_those_of_the_page_behind_a_clip_with_sound(towers, monkeypatch):
    monkeypatch.setattr(joint_pool, "MERGED_SHARE", 0.0)
    monkeypatch.setattr(joint_pool, "REASONED_SHARE", 0.0)
    processor = EncodedProcessor(TOKENIZER, towers.config, processor_settings())
    pool = Pool(Pages(), towers, processor, seed=0, capacity=0, shares={"page": 1.0})
    words = [Clip(np.ones(8000, np.float32), word, "tones") for word in ("one", "two")]
    frames, track, said = random_sounded(np.random.default_rng(0), words, FPS)
    clip = load_media(encode_clip(list(frames), FPS, track))
    pair = [Subject("sounded", clip, {"said": said}), page_subject(0)]
    [turn] = turns_about(np.random.default_rng(0), pair[1])
    turn = turn._replace(shown=tuple(part and part._replace(medium=1) for part in turn.shown))
    inputs = pool._inputs(encode_subjects(towers, processor.settings, pair), [turn])
    assert [bool(marks_of(i, SHOWN_HEAD)) for i in inputs.media] == [False, False, True]


def test_merged_pictures_are_trained_on_without_marks(towers, monkeypatch):
    monkeypatch.setattr(joint_pool, "MERGED_SHARE", 1.0)
    processor = EncodedProcessor(TOKENIZER, towers.config, processor_settings())
    pool = Pool(Pages(), towers, processor, seed=0, capacity=0, shares={"page": 1.0})
    subject = page_subject(0)
    [encoded] = encode_subjects(towers, processor.settings, [subject])
    inputs = pool._inputs([encoded], turns_about(np.random.default_rng(0), subject))
    [item] = inputs.media
    assert not marks_of(item, SHOWN_HEAD)
    assert item.num_tokens < item.grid[1] * item.grid[2] // 4
    assert towers(**inputs).loss.isfinite()


def test_pages_in_memory_make_the_prompt_of_their_pdf_file(towers):
    pages = [page_subject(seed) for seed in range(3)]
    for count in (1, 3):
        turns = document_turns(np.random.default_rng(1), pages[:count], count=2)
        encoded = encode_subjects(towers, processor_settings(), pages[:count])
        quick = EncodedProcessor(TOKENIZER, towers.config, processor_settings())
        document = EncodedDocument(tuple(encoded))
        found = quick(chat([document], turns, answered=True), with_labels=True)
        file = as_pdf([page.medium.pixels.numpy() for page in pages[:count]])
        plain = OmniProcessor(TOKENIZER, towers.config, processor_settings())
        expected = plain(chat([file], turns, answered=True), with_labels=True)
        assert torch.equal(found.input_ids, expected.input_ids)
        assert [item.grid for item in found.media] == [item.grid for item in expected.media]
        with torch.no_grad():
            assert torch.isfinite(towers(**found).loss)


def test_a_pdf_renders_as_the_pictures_that_it_was_made_of(drawn):
    pictures = [pixels for pixels, _ in drawn[:4]]
    document = load_media(as_pdf(pictures))
    assert document.num_pages == len(pictures)
    assert processor_settings().document_dpi == DPI
    for index, pixels in enumerate(pictures):
        rendered = document.render(index, DPI).pixels.numpy().astype(int)
        assert rendered.shape == pixels.shape
        assert np.abs(rendered - pixels).mean() < 4  # JPEG at 95


def test_of_several_pages_the_one_that_is_meant_holds_the_answer():
    pages = [page_subject(seed) for seed in range(4)]
    tasks = Counter()
    for seed in range(40):
        for turn in document_turns(np.random.default_rng(seed), pages, count=3):
            tasks[turn.task] += 1
            if turn.task == "count":
                assert turn.answer == "One, two, three, four: four."
                continue
            number = turn.shown[0].medium
            printed = [text.text for text in pages[number].facts["page"].printed]
            assert conclusion(turn.answer) in printed
            ordinal = ("first", "second", "third", "fourth")[number]
            assert str(number + 1) in turn.question or ordinal in turn.question.lower()
    assert set(tasks) == {"count", "title", "field", "cell"}


def test_of_a_pair_the_picture_that_is_asked_about_shows_the_answer():
    pair = [page_subject(0), page_subject(1)]
    for seed in range(20):
        turn = pair_turn(np.random.default_rng(seed), pair)
        shown = pair[turn.shown[0].medium].facts["page"].printed
        assert conclusion(turn.answer) in [text.text for text in shown]
        assert ("second" in turn.question.lower() or "2:" in turn.question) or (
            turn.shown[0].medium == 0 or " 2" in turn.question
        )


def test_the_pool_asks_about_single_pages_and_documents(towers, monkeypatch):
    monkeypatch.setattr(joint_pool, "TWO_WORDS_SHARE", 0)  # there are no recordings
    processor = EncodedProcessor(TOKENIZER, towers.config, processor_settings())
    pool = Pool(Pages(), towers, processor, seed=0, capacity=12, shares={"page": 1.0})
    pool.fill(0.5)
    samples = [pool.sample() for _ in range(60)]
    assert {len(sample.media) for sample in samples} == {0, 1, 2, 3, 4, 5}
    for sample in samples:
        marks = [mark for item in sample.media for mark in marks_of(item, SHOWN_HEAD)]
        labelled = int((sample.labels[0] != IGNORE_INDEX).sum())
        assert len(marks) < labelled
    assert sum(any(FACT in item.facts for item in sample.media) for sample in samples) > 30


def test_files_of_pages_open_with_what_is_asked_about():
    rng = np.random.default_rng(0)
    for number, (file, turn) in enumerate(count_cases(rng, Pages(), 5)):
        assert load_media(file).num_pages == number + 1
        expected = ("one.", "two.", "three.", "four.", "five.")[number]
        assert conclusion(turn.answer) == expected
    for file, turn in document_cases(rng, Pages(), 4):
        assert load_media(file).num_pages > turn.shown[0].medium
