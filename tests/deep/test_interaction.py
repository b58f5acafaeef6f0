import numpy as np
import pytest
import torch

from gdmix.deep.interaction import INTERACTIONS, Interaction, interact, width

KINDS = tuple(INTERACTIONS)


def _expected(kind, u, v):
    if kind == "cosine":
        lengths = np.linalg.norm(u) * np.linalg.norm(v)
        return [u @ v / lengths] if lengths else [0.0]
    return {
        "inner": [u @ v],
        "hadamard": u * v,
        "difference": u - v,
        "concat": np.concatenate([u, v]),
    }[kind]


@pytest.mark.parametrize("kinds", [*[(kind,) for kind in KINDS], KINDS, KINDS[::-1]])
def test_what_vectors_have_in_common(kinds):
    rng = np.random.default_rng(1)
    document, other = rng.normal(size=(2, 6, 5))
    other[2] = 0.0
    result = interact(torch.tensor(document), torch.tensor(other), kinds).numpy()
    expected = [
        np.concatenate([_expected(kind, u, v) for kind in kinds])
        for u, v in zip(document, other, strict=True)
    ]
    np.testing.assert_allclose(result, expected, rtol=1e-12, atol=1e-15)
    assert result.shape[1] == width(5, kinds)


def test_vectors_of_length_zero_have_finite_gradients():
    document = torch.zeros(2, 3, requires_grad=True)
    other = torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]], requires_grad=True)
    interact(document, other, KINDS).square().sum().backward()
    assert document.grad.isfinite().all() and other.grad.isfinite().all()


def test_gradients_are_those_of_finite_differences():
    inputs = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: interact(x[0], x[1], KINDS), inputs)


def test_each_document_vector_meets_each_other():
    documents, others = torch.randn(2, 4, 3), torch.randn(3, 4, 3)
    module = Interaction(3, ("inner", "hadamard"), documents=2, others=3)
    result = module(list(documents), list(others))
    assert result.shape == (4, module.width) == (4, 2 * 3 * 4)
    last = interact(documents[1], others[2], ("inner", "hadamard"))
    assert torch.equal(result[:, -4:], last)


def test_without_others_the_documents_go_on_as_they_are():
    module = Interaction(3, ("cosine",), documents=2, others=0)
    documents = torch.randn(2, 4, 3)
    assert torch.equal(module(list(documents), []), torch.cat([*documents], -1))
    assert module.width == 6
