"""Training with rounding leaves weights that INT8 stores without loss, and a gradient that goes through."""

from __future__ import annotations

import torch

from serving.build.qat import REDUCED_STEPS, STEPS, rounding


def test_weights_end_on_the_grid_and_learn_on_the_way() -> None:
    torch.manual_seed(2)
    module = torch.nn.Sequential(torch.nn.Embedding(10, 6), torch.nn.Linear(6, 3))
    ids = torch.randint(0, 10, (40,))
    target = torch.randint(0, 3, (40,))
    optimizer = torch.optim.Adam(module.parameters(), 0.05)
    losses = []
    with rounding(module, REDUCED_STEPS):
        for _ in range(40):
            loss = torch.nn.functional.cross_entropy(module(ids), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.1
    assert set(module.state_dict()) == {"0.weight", "1.weight", "1.bias"}
    rows = module[1].weight.detach()
    for weight in (*rows, module[0].weight.detach()):
        steps = weight / (weight.abs().max() / REDUCED_STEPS)
        assert torch.allclose(steps, steps.round(), atol=1e-3)


def test_what_goes_into_a_product_is_rounded_over_the_range_seen() -> None:
    module = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        module.weight.fill_(1.0)
    with rounding(module, STEPS):
        module.train()
        module(torch.tensor([[-1.0], [3.0]]))
        module.eval()
        answers = module(torch.linspace(-2, 4, 500)[:, None]).detach().ravel()
    assert len(answers.unique()) <= 256
    assert answers.min() >= -1.01  # beyond the range it saturates, as INT8 does
    assert answers.max() <= 3.01
