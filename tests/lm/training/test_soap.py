"""SOAP against AdamW where they agree, and where the bases are what matters."""

from __future__ import annotations

import io

import pytest
import torch

from infalign.lm.training.bases import LONGEST, suits
from infalign.lm.training.loop import Schedule, optimiser_of
from infalign.lm.training.soap import EVERY, Soap


def quadratic(rows=12, columns=8):
    """A loss of a matrix whose curvature is uneven along directions that no coordinate has."""
    torch.manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, n))[0] for n in (rows, columns))
    curvature = torch.logspace(0, -2, rows)[:, None] * torch.logspace(0, -2, columns)

    def loss(weight, noise=0.0):
        return (curvature * (left.T @ (weight + noise) @ right - 1) ** 2).sum() / 2

    return loss


def descend(optimiser, weight, loss, steps, first=0, noisy=True):
    for number in range(first, first + steps):
        noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(number))
        optimiser.zero_grad()
        loss(weight, 0.3 * noise if noisy else 0.0).backward()
        optimiser.step()
    return float(loss(weight.detach()))


def test_a_vector_is_adam_s():
    ours, theirs = (torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0])) for _ in range(2))
    soap = Soap([ours], lr=0.1, betas=(0.9, 0.98), epsilon=1e-8)
    adam = torch.optim.Adam([theirs], lr=0.1, betas=(0.9, 0.98), eps=1e-8)
    for _ in range(8):
        soap.zero_grad()
        adam.zero_grad()
        (ours**2 * torch.tensor([1.0, 10.0, 0.1])).sum().backward()
        soap.step()
        (theirs**2 * torch.tensor([1.0, 10.0, 0.1])).sum().backward()
        adam.step()
        torch.testing.assert_close(ours, theirs)


def test_decay_is_adamw_s():
    ours, theirs = (torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0])) for _ in range(2))
    soap = Soap([ours], lr=0.1, betas=(0.9, 0.98), epsilon=1e-8, weight_decay=0.5)
    adamw = torch.optim.AdamW([theirs], lr=0.1, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.5)
    for _ in range(3):
        for optimiser, weight in ((soap, ours), (adamw, theirs)):
            optimiser.zero_grad()
            (weight**2).sum().backward()
            optimiser.step()
        torch.testing.assert_close(ours, theirs)


def test_directions_that_are_no_coordinate_s_are_learnt():
    def best(make):
        ends = []
        for rate in (0.03, 0.1, 0.3):
            weight = torch.nn.Parameter(torch.zeros(12, 8))
            optimiser = make([weight], lr=rate, betas=(0.9, 0.98))
            ends.append(descend(optimiser, weight, quadratic(), 150))
        return min(ends)

    assert best(Soap) < 0.5 * best(torch.optim.Adam)


def test_bases_stay_orthonormal_and_turn_to_the_eigenvectors():
    loss, weight = quadratic(), torch.nn.Parameter(torch.zeros(12, 8))
    soap = Soap([weight], lr=0.0)
    descend(soap, weight, loss, 40 * EVERY, noisy=False)
    state = soap.state[weight]
    for side, size in ((0, 12), (1, 8)):
        basis, common = state[f"basis{side}"], state[f"common{side}"]
        torch.testing.assert_close(basis.T @ basis, torch.eye(size), atol=1e-5, rtol=0)
        turned = basis.T @ common @ basis
        top = float(turned[0, 0])
        assert top == pytest.approx(float(torch.linalg.eigvalsh(common)[-1]), rel=1e-4)
        assert float((turned - turned.diag().diag()).abs().max()) < 1e-3 * top


def test_no_direction_takes_a_longer_step_than_adam_s():
    weight = torch.nn.Parameter(torch.zeros(64, 64))
    soap = Soap([weight], lr=1.0)
    noise = 0.01 * torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(0))
    weight.grad = 1 + noise[0]  # one direction, which the turn after this step finds
    soap.step()
    before = weight.detach().clone()
    weight.grad = noise[1]  # it has no square yet in the new bases, but all of the mean
    soap.step()
    assert float(torch.linalg.matrix_norm(weight.detach() - before, 2)) < 24


def test_a_long_side_has_no_basis():
    weight = torch.nn.Parameter(torch.randn(LONGEST + 1, 4))
    soap = Soap([weight], lr=0.1)
    for _ in range(3):
        soap.zero_grad()
        (weight**2).sum().backward()
        soap.step()
    assert {"basis1", "common1"} < soap.state[weight].keys()
    assert "basis0" not in soap.state[weight]
    assert weight.isfinite().all()


def test_a_gradient_of_nothing_moves_nothing():
    weight = torch.nn.Parameter(torch.ones(3, 5))
    soap = Soap([weight], lr=0.1)
    for _ in range(2 * EVERY):
        weight.grad = torch.zeros(3, 5)
        soap.step()
    assert torch.equal(weight, torch.ones(3, 5))


@pytest.mark.parametrize("steps", [1, 4, 5, 7])
def test_a_saved_state_goes_on_bit_for_bit(steps):
    loss = quadratic()
    whole = torch.nn.Parameter(torch.zeros(12, 8))
    descend(Soap([whole], lr=0.03), whole, loss, 12)
    first = torch.nn.Parameter(torch.zeros(12, 8))
    before = Soap([first], lr=0.03)
    descend(before, first, loss, steps)
    stream = io.BytesIO()
    torch.save(before.state_dict(), stream)
    stream.seek(0)
    second = torch.nn.Parameter(first.detach().clone())
    after = Soap([second], lr=0.03)
    after.load_state_dict(torch.load(stream, weights_only=True))
    descend(after, second, loss, 12 - steps, first=steps)
    assert torch.equal(second, whole)


@pytest.mark.parametrize(
    ("shapes", "name"),
    [
        ([(1024, 64), (64, 64), (64,)], "soap"),
        ([(8, 4096), (4096, 8)], "soap"),  # an adapter
        ([(49152, 576), (576, 576), (192, 576), (1536, 576), (576,)], "adamw"),
    ],
)
def test_which_optimiser_suits_a_model(shapes, name):
    assert suits(shapes) == name
    weights = [torch.nn.Parameter(torch.zeros(shape, device="meta")) for shape in shapes]
    kind = Soap if name == "soap" else torch.optim.AdamW
    assert isinstance(optimiser_of("auto", weights, Schedule(1, 0.1, 0.1)), kind)
    assert isinstance(optimiser_of(name, weights[:1], Schedule(1, 0.1, 0.1)), kind)
