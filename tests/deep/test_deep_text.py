import numpy as np
import pyarrow as pa
import pytest

from gdmix.deep.text import Vocabulary, padded
from gdmix.errors import DataError, ModelError

TEXTS = ["Kolya (1996)", "the Cat, the HAT", None, "", "  ", "Ärger im 东京 the cat"]


def test_most_frequent_words_come_first_and_equals_by_the_alphabet():
    words = Vocabulary.from_texts(TEXTS).words.to_pylist()
    assert words == ["the", "cat", "1996", "hat", "im", "kolya", "ärger", "东京"]


def test_encoded_texts_are_the_words_numbers_filled_up():
    vocabulary = Vocabulary.from_texts(TEXTS, max_size=4)
    assert vocabulary.size == 4
    tokens = vocabulary.encode(["the cat sat", None, "", "THE-the"], 10)
    assert tokens.dtype == np.int32
    assert tokens.tolist() == [[2, 3, 1], [0, 0, 0], [0, 0, 0], [2, 2, 0]]


def test_every_kind_of_column_is_encoded_alike():
    vocabulary = Vocabulary.from_texts(TEXTS)
    expected = vocabulary.encode(TEXTS, 3)
    for texts in (
        pa.array(TEXTS),
        pa.array(TEXTS, pa.large_string()),
        pa.chunked_array([TEXTS[:2], TEXTS[2:]]),
    ):
        assert np.array_equal(vocabulary.encode(texts, 3), expected)
        assert Vocabulary.from_texts(texts).words.equals(vocabulary.words)


def test_counts_go_on_over_many_parts():
    texts = [f"word{i % 7} word{i % 3}" for i in range(40_000)]
    counts = {}
    for text in texts:
        for word in text.split():
            counts[word] = counts.get(word, 0) + 1
    expected = sorted(counts, key=lambda word: (-counts[word], word))
    assert Vocabulary.from_texts(iter(texts)).words.to_pylist() == expected
    at_least = min(counts.values()) + 1
    kept = [word for word in expected if counts[word] >= at_least]
    assert Vocabulary.from_texts(texts, min_count=at_least).words.to_pylist() == kept


def test_words_between_blanks_keep_signs_and_capitals_if_asked():
    vocabulary = Vocabulary.from_texts(["It's\ta  (new) day"], tokenizer="whitespace")
    assert vocabulary.words.to_pylist() == ["(new)", "a", "day", "it's"]
    exact = Vocabulary.from_texts(["It's A day"], tokenizer="whitespace", lowercase=False)
    assert exact.words.to_pylist() == ["A", "It's", "day"]
    assert exact.encode(["a A"], 5).tolist() == [[1, 2]]


def test_a_text_of_100_000_words_is_cut():
    long = "many words " * 50_000
    vocabulary = Vocabulary.from_texts([long, "few"])
    assert vocabulary.encode([long, "few"], 4).tolist() == [[2, 3, 2, 3], [4, 0, 0, 0]]


def test_no_texts_and_texts_without_words():
    vocabulary = Vocabulary(["a"])
    assert vocabulary.encode([], 5).shape == (0, 1)
    assert vocabulary.encode(["", "?!"], 5).tolist() == [[0], [0]]


def test_a_saved_vocabulary_numbers_words_alike(tmp_path):
    vocabulary = Vocabulary.from_texts(TEXTS, lowercase=False)
    vocabulary.save(tmp_path)
    loaded = Vocabulary.load(tmp_path, tokenizer="words", lowercase=False)
    assert loaded.size == vocabulary.size
    assert np.array_equal(loaded.encode(TEXTS, 9), vocabulary.encode(TEXTS, 9))


def test_words_of_a_file_of_ones_own(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("[UNK]\ncat\n[PAD]\n\nhat\n")
    vocabulary = Vocabulary.from_file(path)
    assert vocabulary.encode(["the cat hat"], 9).tolist() == [[1, 2, 3]]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[PAD]\n[UNK]\n", r"words\.txt: vocabulary: holds no word beside \[PAD\] and \[UNK\]"),
        (b"", "holds no word"),
        (b"cat\nhat\ncat\n", "holds 'cat' twice"),
        (b"\xff\xfe\x00", "is no vocabulary: not UTF-8 text"),
        (None, "can't be read: No such file"),
    ],
)
def test_a_file_that_is_no_vocabulary(tmp_path, content, says):
    path = tmp_path / "words.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=says):
        Vocabulary.from_file(path)


def test_texts_that_make_no_vocabulary():
    with pytest.raises(DataError, match="hold no word"):
        Vocabulary.from_texts(["", None, "?"])
    with pytest.raises(DataError, match="hold no word"):
        Vocabulary.from_texts([])
    with pytest.raises(DataError, match="no word occurs 3 times; set a smaller min_count"):
        Vocabulary.from_texts(["a b", "b"], min_count=3)


def test_rows_of_unequal_lengths():
    rows = padded(np.array([5, 6, 7], np.int32), np.array([1, 0, 2], np.int32))
    assert rows.tolist() == [[5, 0], [0, 0], [6, 7]]
