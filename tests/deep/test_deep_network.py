"""The network that a spec describes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from deep_rows import encoded, everything, make_rows  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from gdmix import ConfigError, DeepFixedEffect  # noqa: E402
from gdmix.deep.inputs import InputSizes  # noqa: E402
from gdmix.deep.network import DeepNetwork, build_network  # noqa: E402


def network_of(spec: DeepFixedEffect, n: int = 60) -> tuple[DeepNetwork, Any]:
    encoding, (rows,) = encoded(spec, make_rows(n, 1))
    network = build_network(spec, encoding.sizes, encoding.tokenizer, seed=3)
    assert isinstance(network, DeepNetwork)
    with torch.no_grad():
        for table in network.skip:
            table.weight.normal_()
    return network.eval(), encoding.encode(rows)


def test_each_row_by_hand() -> None:
    network, rows = network_of(everything())
    batch = rows.batch(np.arange(60))
    with torch.no_grad():
        found = network(batch)
        for i in range(0, 60, 7):
            assert by_hand(network, batch, i) == pytest.approx(float(found[i]), rel=1e-4, abs=1e-5)


def by_hand(network: DeepNetwork, batch: dict[str, Tensor], i: int) -> float:
    """Return the score of a row of `everything`, from the network's weights alone."""

    def text(column: str) -> Tensor:
        tokens = batch[f"text/{column}"][batch[f"text_of/{column}"][i]]
        assert network.encoder is not None
        return network.encoder(tokens[tokens != 0][None])[0]

    def wide(table: Any, bag: str) -> Tensor:
        start = [*batch[f"wide_start/{bag}"].tolist(), len(batch[f"wide_index/{bag}"])]
        part = slice(start[i], start[i + 1])
        values = batch[f"wide_value/{bag}"][part]
        return values @ table.weight[batch[f"wide_index/{bag}"][part]]

    def ids(k: int, key: str) -> Tensor:
        return network.ids[k].weight[batch[f"id/{key}"][i]]

    def linear(layer: Any, x: Tensor) -> Tensor:
        return layer.weight @ x + layer.bias

    keys = ["color", "x[40,60]", "color+user", "query+color", "user"]
    vectors = {key: ids(k, key) for k, key in enumerate(keys)}
    document = torch.cat([text("title"), wide(network.wide[1], "tags")])
    u = linear(network.sides[0][3], torch.relu(linear(network.sides[0][0], document)))
    v = linear(network.sides[1][0], torch.cat([text("query"), vectors["user"]]))
    cosine = (u @ v / (u.norm() * v.norm()))[None]
    own = [vectors[key] for key in keys[:4]] + [batch["dense/numbers"][i]]
    seen = torch.cat([cosine, u * v, u, v, *own, wide(network.wide[0], "row")])
    hidden = torch.relu(linear(network.hidden[0], seen))
    shallow = wide(network.shallow_wide[0], "row") + wide(network.shallow_wide[1], "tags")
    tower = torch.relu(linear(network.shallow[0], torch.relu(shallow)))
    score = linear(network.output, torch.cat([hidden, tower]))
    skip = wide(network.skip[0], "row") + wide(network.skip[1], "tags")
    return float(score + skip)


def test_rows_in_any_company() -> None:
    network, rows = network_of(everything())
    order = np.random.default_rng(0).permutation(60)
    with torch.no_grad():
        together = network(rows.batch(np.arange(60))).numpy()
        alone = [float(network(rows.batch(np.array([i])))) for i in range(60)]
        shuffled = network(rows.batch(order)).numpy()
    assert alone == pytest.approx(together, abs=1e-5)
    assert shuffled == pytest.approx(together[order], abs=1e-5)


def test_every_weight_is_trained() -> None:
    network, rows = network_of(everything(activation="gelu"))
    network.train()(rows.batch(np.arange(60))).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


SPECS: list[dict[str, Any]] = [
    {"text": "title"},
    {"text": ["title", "query"], "hidden": []},
    {"categorical": ["color", "user"], "activation": "tanh"},
    {"dense": "numbers", "hidden": []},
    {"wide": ["row", "tags"], "skip": False},
    {"wide": "row", "wide_dim": 0, "shallow": [3]},
    {"wide": "row", "wide_dim": 0, "shallow": [3], "dense": "numbers", "dropout": 0.5},
    {"sides": {"document": {"text": "title"}}},
    {"sides": {"document": {"text": "title", "hidden": [7, 6]}}, "dim": 3, "wide": "row"},
    {
        "sides": {
            "user": {"categorical": "user"},
            "query": {"text": "query"},
            "document": {"text": "title"},
        },
        "interaction": "inner",
    },
]


@pytest.mark.parametrize("fields", SPECS)
def test_any_part_may_be_left_out(fields: dict[str, Any]) -> None:
    network, rows = network_of(DeepFixedEffect("global", **fields))
    scores = network(rows.batch(np.arange(60)))
    assert scores.shape == (60,) and bool(torch.isfinite(scores).all())
    scores.sum().backward()
    # A batch without any wide feature.
    few = rows.batch(np.array([0]))
    for name in few:
        if name.startswith(("wide_index", "wide_value")):
            few[name] = few[name][:0]
    assert network(few).shape == (1,)


def test_the_document_is_compared_with_all_others() -> None:
    network, rows = network_of(DeepFixedEffect("global", **SPECS[-1]))
    batch = rows.batch(np.arange(60))
    d, u, q = (network.side_vector(name, batch) for name in ("document", "user", "query"))
    assert network.interaction is not None
    seen = torch.stack([(d * u).sum(1), (d * q).sum(1)], 1)
    wanted = network.output(network.hidden(seen)).squeeze(1)
    assert torch.allclose(network(batch), wanted, atol=1e-5)


def test_an_unknown_value_is_nothing() -> None:
    network, rows = network_of(DeepFixedEffect("global", categorical="color", hidden=[]))
    batch = rows.batch(np.arange(1))
    batch["id/color"] = torch.zeros(1, dtype=torch.int64)
    assert network(batch).item() == network.output.bias.item()


def test_weights_follow_from_the_seed() -> None:
    spec = everything()
    encoding, _ = encoded(spec, make_rows(60, 1))
    torch.manual_seed(1)
    before = torch.rand(1)
    torch.manual_seed(1)
    one, same, other = (
        build_network(spec, encoding.sizes, encoding.tokenizer, seed) for seed in (1, 1, 2)
    )
    assert torch.rand(1) == before  # PyTorch's own generator is as it was
    for a, b, c in zip(one.parameters(), same.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.numel() < 5 or not torch.equal(a, c) or not a.any()


def test_a_network_grows_with_its_inputs() -> None:
    network, rows = network_of(everything())
    sizes = network._sizes
    ids = {key: size + 2 for key, size in sizes.ids.items()}
    wide = {bag: size + 1 for bag, size in sizes.wide.items()}
    numbers = {bag: np.arange(size)[::-1].copy() for bag, size in sizes.wide.items()}
    numbers["row"][1] = -1
    grown = network.regrown(InputSizes(sizes.tokens, ids, sizes.dense, wide), numbers, 5)
    batch = rows.batch(np.arange(60))
    moved = dict(batch)
    for bag, place in numbers.items():
        moved[f"wide_index/{bag}"] = torch.from_numpy(place)[batch[f"wide_index/{bag}"]]
    touched = batch["wide_index/row"].numpy() == 1
    rest = np.flatnonzero(~touched)  # each row has one feature of this bag
    kept = rows.batch(rest)
    for bag, place in numbers.items():
        kept[f"wide_index/{bag}"] = torch.from_numpy(place)[kept[f"wide_index/{bag}"]]
    with torch.no_grad():
        assert torch.allclose(grown(kept), network(batch)[rest], atol=1e-6)
    assert grown.ids[0].weight.shape[0] == network.ids[0].weight.shape[0] + 2


class Own(nn.Module):
    def __init__(self, inputs: InputSizes, dim: int = 4) -> None:
        super().__init__()
        self.ids = nn.Embedding(inputs.ids["color"], dim)
        self.output = nn.Linear(dim, 1)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.output(self.ids(batch["id/color"])).squeeze(1)


class Bare(nn.Module):
    pass


def NoClass() -> None:  # noqa: N802
    pass


def own(**fields: Any) -> nn.Module:
    spec = DeepFixedEffect("global", categorical="color", **fields)
    encoding, _ = encoded(spec, make_rows(60, 1))
    return build_network(spec, encoding.sizes, None, seed=0)


def test_a_network_of_the_users_own() -> None:
    network = own(model="test_deep_network:Own", params={"dim": 7})
    assert isinstance(network, Own) and network.ids.weight.shape == (5, 7)
    assert isinstance(own(model="test_deep_network:Bare"), Bare)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "nowhere.at_all:Net"}, "can't be imported: No module .* PYTHONPATH"),
        ({"model": "test_deep_network:Nothing"}, "module test_deep_network has no 'Nothing'"),
        ({"model": "test_deep_network:NoClass"}, "is no class of networks"),
        ({"model": "subprocess:Popen", "params": {"args": "true"}}, "is no class of networks"),
        ({"model": "test_deep_network:Own", "params": {"dims": 1}}, "can't be made: .*dims"),
    ],
)
def test_a_network_that_is_none(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"coordinates.global.model: .*{message}"):
        own(**fields)
