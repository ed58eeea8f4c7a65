import itertools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchref.corpus import (
    Vocabulary,
    python_help_text,
    random_batches,
    read_text,
    sequential_batches,
    tokens_needed,
)

PARTITIONS = [random_batches, sequential_batches]


# The vocabulary.


@settings(derandomize=True, max_examples=50)
@given(text=st.text(min_size=1))
def test_decoding_undoes_encoding_and_numbers_go_up_with_characters(text):
    vocabulary = Vocabulary(text)
    ids = vocabulary.encode(text)
    assert ids.dtype == np.int64
    assert ids.shape == (len(text),)
    assert vocabulary.decode(ids) == text
    assert len(vocabulary) == len(set(text))
    assert vocabulary.decode(range(len(vocabulary))) == "".join(sorted(set(text)))


def test_nothing_encodes_to_nothing():
    vocabulary = Vocabulary("abc")
    assert vocabulary.encode("").tolist() == []
    assert vocabulary.decode([]) == ""


def test_a_vocabulary_of_no_text_is_refused():
    with pytest.raises(ValueError, match="text is empty; a vocabulary needs at least"):
        Vocabulary("")


def test_unknown_characters_are_named():
    with pytest.raises(ValueError, match=r"not in the vocabulary: 'd', 'é'\. Build"):
        Vocabulary("abc").encode("abécdé")


def test_of_many_unknown_characters_a_few_are_named():
    expected = r"not in the vocabulary: 'b', 'c', 'd', 'e', 'f' and 20 more\."
    with pytest.raises(ValueError, match=expected):
        Vocabulary("a").encode("abcdefghijklmnopqrstuvwxyz")


@pytest.mark.parametrize("unknown", [3, -1])
def test_unknown_ids_are_named_and_negative_ones_do_not_count_from_the_end(unknown):
    expected = rf"not in the vocabulary: {unknown}\. They must lie in 0\.\.2\."
    with pytest.raises(ValueError, match=expected):
        Vocabulary("abc").decode([0, unknown, 2])


def test_ids_that_are_not_integers_or_not_in_a_row_are_refused():
    with pytest.raises(TypeError, match="ids has dtype float64; it must hold integers"):
        Vocabulary("abc").decode([0.0, 1.0])
    with pytest.raises(ValueError, match=r"ids has shape \(1, 2\); it must be one-dim"):
        Vocabulary("abc").decode([[0, 1]])


# The texts.


def test_the_help_text_of_python_is_long_english_and_the_same_each_time():
    text = python_help_text()
    assert len(text) > 300_000
    assert text.count(" the ") > 3_000
    assert len(Vocabulary(text)) < 200
    assert python_help_text() == text


def test_a_file_is_read_as_it_is(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes("Grüße,\r\n世界".encode())
    assert read_text(path) == "Grüße,\r\n世界"
    assert read_text(str(path), min_chars=10) == "Grüße,\r\n世界"


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, FileNotFoundError, "there is no such file"),
        (b"", ValueError, "the file is empty"),
        ("é" * 9, ValueError, "the text is too short: it has 9 characters, and 10 are"),
        (
            b"a text\xff",
            ValueError,
            r"this is not UTF-8 text: byte 0xff at offset 6 \(invalid start byte\)",
        ),
    ],
)
def test_a_file_that_will_not_do_is_refused_by_name(tmp_path, content, error, message):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(error, match=rf"text\.txt: {message}"):
        read_text(path, min_chars=10)


def test_a_directory_is_refused_by_name(tmp_path):
    with pytest.raises(
        IsADirectoryError, match=f"{tmp_path.name}: this is a directory"
    ):
        read_text(tmp_path)


# The batches.


@st.composite
def epochs(draw):
    """Draw arguments that make at least one batch; the tokens count up from 0."""
    batch_size, num_steps = draw(st.integers(1, 5)), draw(st.integers(1, 7))
    needed = tokens_needed(batch_size, num_steps)
    num_tokens = draw(st.integers(needed, 5 * needed))
    return num_tokens, batch_size, num_steps, draw(st.integers(0, 1000))


@pytest.mark.parametrize("partition", PARTITIONS)
@settings(derandomize=True)
@given(epoch=epochs())
def test_batches_are_whole_shifted_by_one_and_use_each_token_once(partition, epoch):
    num_tokens, batch_size, num_steps, seed = epoch
    batches = list(partition(np.arange(num_tokens), batch_size, num_steps, seed=seed))
    assert batches
    for inputs, targets in batches:
        assert inputs.shape == targets.shape == (batch_size, num_steps)
        assert inputs.dtype == targets.dtype == np.int64
        np.testing.assert_array_equal(inputs, inputs[:, :1] + np.arange(num_steps))
        np.testing.assert_array_equal(targets, inputs + 1)
    used = np.concatenate([inputs.ravel() for inputs, _ in batches])
    assert len(np.unique(used)) == len(used)
    assert max(targets.max() for _, targets in batches) < num_tokens
    # Left out: the last target, the random start, and less than one more batch,
    # counted for the sequential partition once in tokens that fill no row.
    left_out = num_tokens - len(used)
    assert left_out < 1 + (num_steps - 1) + batch_size * num_steps + batch_size


@settings(derandomize=True)
@given(epoch=epochs())
def test_sequential_batches_are_the_columns_of_the_text_laid_in_rows(epoch):
    num_tokens, batch_size, num_steps, seed = epoch
    tokens = np.random.default_rng(0).integers(100, size=num_tokens)
    batches = list(sequential_batches(tokens, batch_size, num_steps, seed=seed))
    offset = np.random.default_rng(seed).integers(num_steps)
    used = (num_tokens - offset - 1) // batch_size * batch_size
    xs = tokens[offset : offset + used].reshape(batch_size, -1)
    ys = tokens[offset + 1 : offset + 1 + used].reshape(batch_size, -1)
    assert len(batches) == xs.shape[1] // num_steps
    for k, (inputs, targets) in enumerate(batches):
        columns = slice(k * num_steps, (k + 1) * num_steps)
        np.testing.assert_array_equal(inputs, xs[:, columns])
        np.testing.assert_array_equal(targets, ys[:, columns])


@settings(derandomize=True)
@given(epoch=epochs())
def test_a_row_of_a_sequential_batch_goes_on_where_it_stopped(epoch):
    num_tokens, *sizes, seed = epoch
    batches = list(sequential_batches(np.arange(num_tokens), *sizes, seed=seed))
    for (_, before), (after, _) in itertools.pairwise(batches):
        np.testing.assert_array_equal(after[:, 0], before[:, -1])


@settings(derandomize=True)
@given(epoch=epochs())
def test_random_batches_are_pieces_that_lie_side_by_side(epoch):
    num_tokens, batch_size, num_steps, seed = epoch
    batches = list(random_batches(range(num_tokens), batch_size, num_steps, seed=seed))
    starts = np.concatenate([inputs[:, 0] for inputs, _ in batches])
    offset = np.random.default_rng(seed).integers(num_steps)
    assert set(starts % num_steps) == {offset}
    assert len(batches) == (num_tokens - offset - 1) // num_steps // batch_size


def test_random_batches_come_in_an_order_that_the_seed_shuffles():
    def starts(seed):
        batches = random_batches(range(1001), 10, 5, seed=seed)
        return [int(start) // 5 for inputs, _ in batches for start in inputs[:, 0]]

    assert starts(0) != sorted(starts(0))
    assert starts(0) != starts(1)


@pytest.mark.parametrize("partition", PARTITIONS)
def test_the_same_seed_gives_the_same_batches_and_seeds_reach_every_start(partition):
    def epoch(seed):
        return np.array(list(partition(range(50), 2, 4, seed=seed)))

    assert np.array_equal(epoch(3), epoch(3))
    assert {int(epoch(seed).min() % 4) for seed in range(40)} == {0, 1, 2, 3}


@pytest.mark.parametrize("partition", PARTITIONS)
def test_a_text_too_short_is_refused_whatever_the_seed_and_at_once(partition):
    needed = tokens_needed(2, 4)
    expected = "it has 11 tokens, and batch_size 2 by num_steps 4 needs at least 12"
    for seed in range(20):
        assert list(partition(range(needed), 2, 4, seed=seed))
        with pytest.raises(ValueError, match=f"tokens is too short: {expected}"):
            partition(range(needed - 1), 2, 4, seed=seed)


@pytest.mark.parametrize("partition", PARTITIONS)
@pytest.mark.parametrize(
    ("sizes", "message"),
    [((0, 4), "batch_size is 0; it must be"), ((2, -1), "num_steps is -1; it must be")],
)
def test_a_size_below_one_is_refused(partition, sizes, message):
    with pytest.raises(ValueError, match=message):
        partition(range(100), *sizes, seed=0)


@pytest.mark.parametrize("partition", PARTITIONS)
def test_tokens_that_are_not_integers_in_a_row_are_refused(partition):
    with pytest.raises(TypeError, match="tokens has dtype float64; it must hold int"):
        partition(np.zeros(100), 2, 4, seed=0)
    with pytest.raises(
        ValueError, match=r"tokens has shape \(10, 10\); it must be one"
    ):
        partition(np.zeros((10, 10), np.int64), 2, 4, seed=0)


@pytest.mark.parametrize("partition", PARTITIONS)
@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_tokens_of_any_integer_type_come_out_as_int64(partition, dtype):
    for inputs, targets in partition(np.arange(50, dtype=dtype), 2, 4, seed=0):
        assert inputs.dtype == targets.dtype == np.int64


@pytest.mark.parametrize("partition", PARTITIONS)
def test_batches_do_not_share_memory_with_the_text(partition):
    tokens = np.arange(50)
    for inputs, targets in partition(tokens, 2, 4, seed=0):
        inputs[:] = targets[:] = -1
    np.testing.assert_array_equal(tokens, np.arange(50))


# What it imports.


@pytest.mark.parametrize(("module", "loads"), [("corpus", False), ("rnn", True)])
def test_the_corpus_needs_no_torch_and_this_test_would_see_it(module, loads):
    code = f"import sys, torchref.{module}; print('torch' in sys.modules)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(loads)
