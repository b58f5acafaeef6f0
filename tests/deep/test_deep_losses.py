import math

import numpy as np
import pytest
import torch

from gdmix.deep.losses import LOSSES, POINTWISE, RANKING, check_relevance
from gdmix.errors import DataError
from gdmix.glm.losses import LOGISTIC, POISSON, SQUARED, evaluate_rows

GLM = {"logistic": LOGISTIC, "squared": SQUARED, "poisson": POISSON}


def _rows(seed, n=40, groups=6, levels=4):
    rng = np.random.default_rng(seed)
    score, weight = rng.normal(size=n), rng.uniform(0.2, 3.0, n)
    weight[rng.integers(0, n, n // 8)] = 0.0
    response = rng.integers(0, levels, n).astype(float)
    return score, response, weight, rng.integers(0, groups, n) * 7 - 3


def _value(name, score, response, weight, group):
    arrays = (torch.as_tensor(a, dtype=torch.float64) for a in (score, response, weight))
    return LOSSES[name](*arrays, None if group is None else torch.as_tensor(group)).item()


def _dcg(gains):
    return sum(gain / math.log2(rank + 2) for rank, gain in enumerate(gains))


def _oracle(name, score, response, weight, group):
    """Loop over groups and pairs; NDCG is computed again for each swap."""
    total = 0.0
    for key in set(group):
        rows = [i for i in range(len(score)) if group[i] == key and weight[i] > 0]
        if name == "softmax":
            partition = math.log(sum(weight[j] * math.exp(score[j]) for j in rows))
            total += sum(weight[i] * response[i] * (partition - score[i]) for i in rows)
            continue
        ranked = sorted(rows, key=lambda i: -score[i])
        gains = {i: 2.0 ** response[i] - 1.0 for i in rows}
        best = _dcg(sorted(gains.values(), reverse=True))
        for i in rows:
            for j in rows:
                if response[i] <= response[j]:
                    continue
                change = 1.0
                if name == "lambdarank":
                    swapped = [{i: j, j: i}.get(k, k) for k in ranked]
                    change = (
                        abs(_dcg([gains[k] for k in swapped]) - _dcg([gains[k] for k in ranked]))
                        / best
                    )
                loss = math.log1p(math.exp(score[j] - score[i]))
                total += math.sqrt(weight[i] * weight[j]) * change * loss
    return total


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", RANKING)
def test_ranking_losses_are_those_of_loops_over_pairs(name, seed):
    rows = _rows(seed)
    assert _value(name, *rows) == pytest.approx(_oracle(name, *rows), rel=1e-12)


@pytest.mark.parametrize("name", POINTWISE)
def test_pointwise_losses_and_gradients_are_the_solvers(name):
    score, response, weight, _ = _rows(4, levels=2)
    d1, d2 = np.empty_like(score), np.empty_like(score)
    expected = evaluate_rows(GLM[name], score.size, score, response, weight, d1, d2)
    z = torch.tensor(score, requires_grad=True)
    value = LOSSES[name](z, torch.tensor(response), torch.tensor(weight), None)
    value.backward()
    assert value.item() == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(z.grad.numpy(), d1, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_finite_differences(name):
    score, response, weight, group = _rows(5, levels=2 if name in POINTWISE else 4)
    z = torch.tensor(score, requires_grad=True)
    rest = torch.tensor(response), torch.tensor(weight), torch.tensor(group)
    assert torch.autograd.gradcheck(lambda z: LOSSES[name](z, *rest), z)


@pytest.mark.parametrize("name", LOSSES)
def test_a_row_of_weight_zero_is_absent(name):
    score, response, weight, group = _rows(6, levels=2 if name in POINTWISE else 4)
    kept = weight > 0
    assert not kept.all()
    left = _value(name, score[kept], response[kept], weight[kept], group[kept])
    assert _value(name, score, response, weight, group) == pytest.approx(left, rel=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_the_order_of_rows_and_the_numbers_of_groups_do_not_matter(name):
    score, response, weight, group = _rows(7, levels=2 if name in POINTWISE else 4)
    order = np.random.default_rng(0).permutation(score.size)
    moved = _value(name, score[order], response[order], weight[order], 100 - 5 * group[order])
    assert moved == pytest.approx(_value(name, score, response, weight, group), rel=1e-12)


@pytest.mark.parametrize("name", RANKING)
def test_the_weight_of_a_whole_group_multiplies_its_gradient(name):
    score, response, _, group = _rows(8)
    heavy = np.where(group == group[0], 5.0, 1.0)
    gradients = []
    for weight in (np.ones_like(heavy), heavy):
        z = torch.tensor(score, requires_grad=True)
        LOSSES[name](z, *map(torch.tensor, (response, weight, group))).backward()
        gradients.append(z.grad.numpy())
    np.testing.assert_allclose(gradients[1], heavy * gradients[0], rtol=1e-10)


def test_softmax_takes_a_row_of_weight_two_for_two_rows():
    score, response, group = np.array([0.3, -1.0, 2.0]), np.array([1.0, 0.0, 1.0]), np.zeros(3, int)
    twice = [0, 0, 1, 2]
    assert _value("softmax", score, response, [2.0, 1.0, 1.0], group) == pytest.approx(
        _value("softmax", score[twice], response[twice], np.ones(4), group[[0, 0, 0, 0]])
    )


def test_softmax_of_one_relevant_row_is_cross_entropy():
    score = torch.randn(5, 4, dtype=torch.float64)
    relevant = torch.tensor([0, 3, 1, 1, 2])
    expected = torch.nn.functional.cross_entropy(score, relevant, reduction="sum")
    response = torch.nn.functional.one_hot(relevant, 4).double()
    group = torch.arange(5).repeat_interleave(4)
    found = LOSSES["softmax"](score.flatten(), response.flatten(), torch.ones(20), group)
    assert found.item() == pytest.approx(expected.item())


@pytest.mark.parametrize("name", LOSSES)
def test_no_rows_and_rows_without_weight_give_zero_that_has_a_gradient(name):
    for n in (0, 3):
        z = torch.zeros(n, requires_grad=True)
        loss = LOSSES[name](z, torch.ones(n), torch.zeros(n), torch.zeros(n, dtype=torch.long))
        loss.backward()
        assert loss.item() == 0.0 and z.grad is not None and not z.grad.any()


@pytest.mark.parametrize("name", ["pairwise", "lambdarank"])
def test_groups_without_an_order_give_zero(name):
    group = np.array([0, 1, 1, 2, 2])
    response = np.array([3.0, 2.0, 2.0, 0.0, 0.0])
    assert _value(name, np.arange(5.0), response, np.ones(5), group) == 0.0


@pytest.mark.parametrize("name", ["logistic", *RANKING])
def test_scores_far_from_zero_stay_finite(name):
    z = torch.tensor([900.0, -900.0, 900.0, -900.0], requires_grad=True)
    response, group = torch.tensor([1.0, 0.0, 0.0, 1.0]), torch.tensor([0, 0, 1, 1])
    loss = LOSSES[name](z, response, torch.ones(4), group)
    loss.backward()
    assert loss.item() > 600.0 and z.grad.isfinite().all()


@pytest.mark.parametrize("name", RANKING)
def test_its_minimum_ranks_rows_by_relevance(name):
    _, response, _, group = map(torch.tensor, _rows(9, n=30, groups=3))
    if name == "softmax":  # its minimum is the logarithm of relevance
        response = response + 1
    z = torch.zeros(30, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([z], lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        LOSSES[name](z, response, torch.ones(30), group).backward()
        optimizer.step()
    for key in group.unique():
        one = group == key
        above = response[one][:, None] > response[one][None, :]
        assert (z[one][:, None] > z[one][None, :])[above].all()


def test_relevance_that_a_loss_does_not_take():
    check_relevance("pairwise", np.array([-3.0, 50.0]))
    check_relevance("lambdarank", np.array([0.0, 30.0]))
    with pytest.raises(DataError, match=r"'softmax' takes relevance of 0 or more \(got -1\)"):
        check_relevance("softmax", np.array([-1.0, 2.0]))
    with pytest.raises(DataError, match=r"relevance up to 30.*\(got 31\)"):
        check_relevance("lambdarank", np.array([31.0]))
