import torch

from teachers.byol import BYOL, regression


def test_agrees_with_the_original_program(given, agrees, ceb):
    hidden = given("hidden")
    predictions, targets = hidden.chunk(2)
    loss = 2 * regression(predictions, targets)  # one direction, w = 2
    loss.backward()
    agrees("byol_w2", loss=loss, grad=hidden.grad)


def test_views_are_compared_across():
    method = BYOL(8, hidden_dim=4, projection_dim=4, regression_weight=3.0)
    method.predictor = torch.nn.Identity()
    first, second = torch.eye(4)[:2], torch.eye(4)[2:]
    hidden = torch.cat([first, second])
    assert method(hidden, torch.cat([second, first])).loss.item() == 0
    assert method(hidden, hidden).loss.item() == 3.0 * (2 + 2)  # orthogonal: |y - t|^2 = 2


def test_the_target_is_only_looked_at():
    method = BYOL(8, hidden_dim=4, projection_dim=4)
    method(torch.randn(6, 4), torch.randn(6, 4)).loss.backward()
    assert all(p.grad is not None for p in method.predictor.parameters())
    assert all(p.grad is None for p in method.head.parameters())  # the caller ran it
