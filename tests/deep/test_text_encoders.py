import math

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from scipy.special import erf, expit

from gdmix.config.encoders import Encoder
from gdmix.deep.encoders import build_encoder, build_tokenizer, load_tokenizer
from gdmix.deep.frozen import Projection
from gdmix.deep.text import count_words

TEXTS = ["the cat sat", "", "a dog barked at the cat", "dog", None, "cat cat"]
SPECS = [
    {"type": "cnn", "windows": [1, 2, 4], "filters": 5},
    {"type": "cnn", "windows": 9, "filters": 5, "activation": "tanh"},
    {"type": "lstm", "units": 5},
    {"type": "lstm", "units": 5, "bidirectional": True, "pooling": "mean"},
    {"type": "lstm", "units": 5, "bidirectional": True, "layers": 2},
    {"type": "lstm", "units": 5, "pooling": "max"},
    {"type": "transformer", "heads": 2},
    {"type": "transformer", "heads": 2, "pooling": "max", "layers": 1, "feed_forward": 7},
    {"type": "transformer", "heads": 2, "pooling": "cls"},
]
IDS = [
    "-".join(f"{v}" for v in spec.values()).translate({ord(c): None for c in "[], "})
    for spec in SPECS
]


def _spec(fields):
    return TypeAdapter(Encoder).validate_python({"word_dim": 6, "max_length": 12, **fields})


def _build(fields, seed=0):
    spec = _spec(fields)
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(spec, count_words(TEXTS))
    encoder = build_encoder(spec, tokenizer).double().eval()
    return spec, encoder, torch.from_numpy(tokenizer.encode(TEXTS, spec.max_length))


def _array(tensor):
    return tensor.detach().numpy()


def _cnn(spec, encoder, words):
    activation = np.tanh if spec.activation == "tanh" else lambda x: np.maximum(x, 0.0)
    result = []
    for window, filters in zip(spec.windows, encoder.filters, strict=True):
        weight = _array(filters.weight).reshape(spec.filters, spec.word_dim, window)
        bias = _array(filters.bias)
        extended = np.vstack([words, np.zeros((window - 1, words.shape[1]))])
        values = [
            bias + sum(weight[:, :, j] @ extended[i + j] for j in range(window))
            for i in range(len(words))
        ]
        result.append(activation(np.max(values, axis=0)))
    return np.concatenate(result)


def _lstm(spec, encoder, words):
    state, last = words, []
    for layer in range(spec.layers):
        sides, last = [], []
        for suffix in ("", "_reverse")[: 1 + spec.bidirectional]:
            w_ih, w_hh, b_ih, b_hh = (
                _array(getattr(encoder.lstm, f"{name}_l{layer}{suffix}"))
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            hidden = cell = np.zeros(spec.units)
            seen = []
            for word in state[::-1] if suffix else state:
                i, f, g, o = np.split(w_ih @ word + b_ih + w_hh @ hidden + b_hh, 4)
                cell = expit(f) * cell + expit(i) * np.tanh(g)
                hidden = expit(o) * np.tanh(cell)
                seen.append(hidden)
            last.append(hidden)
            sides.append(seen[::-1] if suffix else seen)
        state = np.hstack(sides)
    if spec.pooling == "last":
        return np.concatenate(last)
    return state.mean(0) if spec.pooling == "mean" else state.max(0)


def _norm(x, layer):
    centred = x - x.mean(1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(1, keepdims=True) + layer.eps)
    return scaled * _array(layer.weight) + _array(layer.bias)


def _transformer(spec, encoder, words):
    words = words + _array(encoder.positions.weight)[: len(words)]
    x = np.vstack([_array(encoder.cls)[None], words])
    size = spec.word_dim // spec.heads
    for layer in encoder.layers.layers:
        y = _norm(x, layer.norm1)
        attention = layer.self_attn
        q, k, v = np.split(
            y @ _array(attention.in_proj_weight).T + _array(attention.in_proj_bias), 3, axis=1
        )
        heads = []
        for h in range(spec.heads):
            part = slice(h * size, (h + 1) * size)
            weights = np.exp(q[:, part] @ k[:, part].T / math.sqrt(size))
            heads.append(weights / weights.sum(1, keepdims=True) @ v[:, part])
        out = attention.out_proj
        x = x + np.hstack(heads) @ _array(out.weight).T + _array(out.bias)
        hidden = _norm(x, layer.norm2) @ _array(layer.linear1.weight).T + _array(layer.linear1.bias)
        hidden = hidden * (1 + erf(hidden / math.sqrt(2))) / 2
        x = x + hidden @ _array(layer.linear2.weight).T + _array(layer.linear2.bias)
    x = _norm(x, encoder.layers.norm)
    if spec.pooling == "cls":
        return x[0]
    return x[1:].mean(0) if spec.pooling == "mean" else x[1:].max(0)


ORACLES = {"cnn": _cnn, "lstm": _lstm, "transformer": _transformer}


@pytest.mark.parametrize("fields", SPECS, ids=IDS)
def test_vectors_are_those_of_each_text_alone_by_loops(fields):
    spec, encoder, tokens = _build(fields)
    found = _array(encoder(tokens))
    assert found.shape == (len(TEXTS), encoder.dim)
    for row, own in zip(found, tokens, strict=True):
        words = _array(encoder.words.weight[own[own > 0]])
        if len(words):
            np.testing.assert_allclose(row, ORACLES[spec.type](spec, encoder, words), rtol=1e-9)


@pytest.mark.parametrize("fields", SPECS, ids=IDS)
def test_padding_and_other_rows_do_not_matter(fields):
    _, encoder, tokens = _build(fields)
    whole = encoder(tokens)
    longer = torch.nn.functional.pad(tokens, (0, 12 - tokens.shape[1]))
    torch.testing.assert_close(encoder(longer), whole, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(encoder(tokens.flip(0)).flip(0), whole, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(encoder(tokens.long()), whole)


@pytest.mark.parametrize("fields", SPECS, ids=IDS)
def test_a_text_without_words_has_a_vector_and_finite_gradients(fields):
    spec, encoder, tokens = _build(fields)
    encoder.train()
    vectors = encoder(tokens)
    vectors.square().sum().backward()
    gradients = [p.grad for p in encoder.parameters() if p.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)
    empty = encoder.eval()(tokens)[1]
    if getattr(spec, "pooling", None) == "cls":
        assert empty.isfinite().all() and empty.any()
    else:
        assert not empty.any()
    none = encoder(tokens[:, :0])
    torch.testing.assert_close(none, empty.expand_as(none))
    assert encoder(tokens[:0]).shape == (0, encoder.dim)


@pytest.mark.parametrize("fields", SPECS, ids=IDS)
def test_an_encoder_is_rebuilt_from_its_state_and_vocabulary(fields, tmp_path):
    spec, encoder, tokens = _build(fields)
    build_tokenizer(spec, count_words(TEXTS)).save(tmp_path)
    tokenizer = load_tokenizer(spec, tmp_path)
    again = build_encoder(spec, tokenizer, pretrained=False).double().eval()
    again.load_state_dict(encoder.state_dict())
    tokens_again = torch.from_numpy(tokenizer.encode(TEXTS, spec.max_length))
    assert torch.equal(tokens_again, tokens)
    assert torch.equal(again(tokens_again), encoder(tokens))


@pytest.mark.parametrize("fields", SPECS, ids=IDS)
def test_the_same_seed_gives_the_same_weights(fields):
    states = [_build(fields, seed)[1].state_dict() for seed in (0, 0, 1)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert any(not torch.equal(states[0][key], states[2][key]) for key in states[0])


@pytest.mark.parametrize("fields", [SPECS[0], SPECS[2], SPECS[3], SPECS[6], SPECS[8]])
def test_it_learns_the_order_of_words_if_it_can_see_it(fields):
    texts = ["good not bad", "bad not good", "not good bad", "bad good not"] * 2
    response = torch.tensor([1.0, 0.0, 0.0, 1.0] * 2)
    spec = _spec({**fields, "dropout": 0.0, "word_dim": 16})
    torch.manual_seed(0)
    tokenizer = build_tokenizer(spec, count_words(texts))
    encoder = build_encoder(spec, tokenizer)
    head = torch.nn.Linear(encoder.dim, 1)
    optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=0.02)
    tokens = torch.from_numpy(tokenizer.encode(texts, spec.max_length))
    for _ in range(100):
        optimizer.zero_grad()
        score = head(encoder(tokens)).squeeze(1)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(score, response)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
    assert encoder.pretrained_parameters() == []


def test_words_of_padding_stay_zero_in_training():
    _, encoder, tokens = _build(SPECS[0])
    encoder(tokens).sum().backward()
    assert not encoder.words.weight[0].any() and not encoder.words.weight.grad[0].any()


def test_embeddings_pass_through_a_linear_layer_of_another_size():
    embeddings = torch.randn(3, 8)
    assert torch.equal(Projection(8, None)(embeddings), embeddings)
    layer = Projection(8, 2)
    assert layer.dim == 2 and layer(embeddings).shape == (3, 2)
