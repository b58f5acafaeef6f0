import pytest
from pydantic import TypeAdapter

from gdmix.config.base import config_errors
from gdmix.config.encoders import CnnEncoder, Encoder, FrozenEncoder, HfEncoder
from gdmix.errors import ConfigError


def _encoder(value):
    with config_errors("encoder: "):
        return TypeAdapter(Encoder).validate_python(value)


def test_a_type_alone_is_an_encoder():
    assert _encoder("cnn") == CnnEncoder()
    assert _encoder({"type": "cnn", "windows": 3}).windows == (3,)


def test_only_hugging_face_models_are_pretrained():
    assert not any(_encoder(kind).is_pretrained for kind in ("cnn", "lstm", "transformer"))
    assert HfEncoder(model="x").is_pretrained and FrozenEncoder(model="x").is_pretrained


def test_an_encoder_is_read_back_from_its_own_json():
    for spec in (CnnEncoder(windows=(2, 5), vocabulary="words.txt"), FrozenEncoder(model="x")):
        assert _encoder(spec.model_dump(mode="json")) == spec


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"type": "cnn", "window": [3]}, r"window: unknown key \(did you mean 'windows'\?\)"),
        ({"type": "cnn", "windows": []}, "windows: is empty"),
        ({"type": "cnn", "windows": [2, 2]}, "2 is listed twice"),
        ({"type": "cnn", "max_vocabulary": 2}, r"should be 3 or more: \[PAD\] and \[UNK\] are two"),
        ({"type": "lstm", "max_vocabulary": -1}, "should be 3 or more"),
        (
            {"type": "lstm", "vocabulary": "words.txt", "min_count": 2},
            "vocabulary says which words there are: remove it, or min_count",
        ),
        ({"type": "lstm", "dropout": 1.0}, "dropout: should be less than 1"),
        ({"type": "transformer", "heads": 3}, "heads: 3 heads can't share a word_dim of 64"),
        ({"type": "transformer", "pooling": "last"}, "pooling: should be 'mean', 'cls' or 'max'"),
        ("hf", "model: is required"),
        ({"type": "frozen", "model": ""}, "model: is empty"),
        ({"type": "frozen", "model": "x", "max_length": 0}, "max_length: should be greater than"),
    ],
)
def test_mistakes_have_a_line_each(value, says):
    with pytest.raises(ConfigError, match=says):
        _encoder(value)
