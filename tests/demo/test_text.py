import itertools

import numpy as np
import pytest

from jaxclip.demo._settings import BATCH_SIZE, SEQUENCE_LENGTH, DemoError, Settings
from jaxclip.demo._text import load_corpus

LEAST = (BATCH_SIZE + 1) * SEQUENCE_LENGTH


def corpus_of(tmp_path, text):
    path = tmp_path / "text.txt"
    path.write_text(text, encoding="utf-8")
    return load_corpus(Settings(text=path))


def test_the_default_text_comes_with_python():
    corpus = load_corpus(Settings())
    assert len(corpus.tokens) > 100_000
    assert 50 < corpus.vocab_size < 500


def test_batches_go_on_for_as_long_as_asked_and_are_the_same_each_time(tmp_path):
    corpus = corpus_of(tmp_path, "abc" * LEAST)
    once, again = list(corpus.batches(50)), list(corpus.batches(50))
    assert len(once) == 50
    assert all(tokens.shape == (BATCH_SIZE, SEQUENCE_LENGTH) for tokens in once[-1])
    np.testing.assert_array_equal(once, again)


def test_every_pass_over_the_text_starts_elsewhere_and_so_does_every_seed(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("".join(map(chr, range(256, 256 + LEAST))), encoding="utf-8")

    def starts(seed):
        batches = load_corpus(Settings(text=path, seed=seed)).batches(8)
        return [int(inputs[0, 0]) for inputs, _ in batches]  # one batch for each pass

    assert len(set(starts(0))) > 4
    assert starts(1) == [*starts(0)[1:], starts(8)[0]]
    assert starts(1) != starts(0)


def test_a_row_goes_on_where_it_stopped(tmp_path):
    corpus = corpus_of(tmp_path, "".join(map(chr, range(256, 256 + 4 * LEAST))))
    for (_, targets), (inputs, _) in itertools.pairwise(corpus.batches(3)):
        np.testing.assert_array_equal(inputs[:, 0], targets[:, -1])


def test_a_text_just_long_enough_will_do(tmp_path):
    text = "ab" * (LEAST // 2)
    assert len(list(corpus_of(tmp_path, text).batches(3))) == 3
    message = f"too short: it has {LEAST - 1} characters, and at least {LEAST} are"
    with pytest.raises(DemoError, match=message):
        corpus_of(tmp_path, text[:-1])


def test_a_text_of_one_character_is_refused(tmp_path):
    with pytest.raises(DemoError, match="repeats one character, 'x'"):
        corpus_of(tmp_path, "x" * LEAST)
