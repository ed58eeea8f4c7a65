"""What the notebook's hand-written weight decay does, and what it should do.

The notebook adds it between ``zero_grad()`` and ``backward()``, by ``param.grad.add``,
although the optimizer has a ``weight_decay`` of its own. Every number below is a
small fraction of 2, so float32 holds it exactly and "equal" means to the bit.
"""

import pytest
import torch
from torch import nn

from torchref.training import sgd, squared_error_loss, train, train_step

LR, DECAY = 0.5, 0.25
WEIGHT = torch.tensor([[1.0, 2.0]])
# The loss is (w @ (1, -1))^2 = 1, and so its gradient is 2 * -1 * (1, -1).
BATCH = torch.tensor([[1.0, -1.0]]), torch.tensor([[0.0]])
GRADIENT = torch.tensor([[-2.0, 2.0]])
# What a parameter holds in `grad` from the batch before.
STALE = torch.tensor([[64.0, 64.0]])


def a_net():
    net = nn.Linear(2, 1, bias=False)
    net.weight.data.copy_(WEIGHT)
    net.weight.grad = STALE.clone()
    return net


def right_update(decay):
    """Return the weight after one step of SGD, in closed form."""
    return WEIGHT - LR * (GRADIENT + decay * WEIGHT)


def add_in_place(param):
    param.grad.add_(param.data, alpha=DECAY)


def add_out_of_place(param):
    param.grad.add(param.data, alpha=DECAY)


def nothing(param):
    pass


def step_by_hand(
    *,
    before_backward=nothing,
    after_backward=nothing,
    optimizer_decay=0.0,
    set_to_none=True,
):
    """Take the notebook's step, with weight decay added by hand where asked."""
    net = a_net()
    optimizer = torch.optim.SGD(net.parameters(), LR, weight_decay=optimizer_decay)

    def for_each_parameter(add):
        for param in net.parameters():
            if param.requires_grad and param.grad is not None:
                add(param)

    optimizer.zero_grad(set_to_none=set_to_none)
    x, y = BATCH
    loss = nn.functional.mse_loss(net(x), y)
    for_each_parameter(before_backward)
    loss.backward()
    for_each_parameter(after_backward)
    optimizer.step()
    return net.weight.detach()


def test_train_step_decays_once():
    net = a_net()
    optimizer = sgd(net, LR, weight_decay=DECAY)
    train_step(net, optimizer, BATCH, loss_fn=squared_error_loss)
    assert torch.equal(net.weight, right_update(DECAY))
    assert torch.equal(net.weight, torch.tensor([[1.875, 0.75]]))


def test_train_decays_once_a_step_and_momentum_carries_the_decay_along():
    net = a_net()
    train(
        net,
        [BATCH] * 3,
        lr=LR,
        momentum=0.5,
        weight_decay=DECAY,
        loss_fn=squared_error_loss,
    )
    x = BATCH[0]
    weight, velocity = WEIGHT, torch.zeros(1, 2)
    for _ in range(3):
        velocity = 0.5 * velocity + 2 * (weight @ x.T) * x + DECAY * weight
        weight = weight - LR * velocity
    assert torch.equal(net.weight, weight)


def test_train_step_clips_the_gradient_and_not_the_decay():
    net = a_net()
    optimizer = sgd(net, LR, weight_decay=DECAY)
    train_step(net, optimizer, BATCH, loss_fn=squared_error_loss, max_norm=0.5)
    clipped = GRADIENT * (0.5 / GRADIENT.norm())
    # Not to the bit: torch adds 1e-6 to the norm before it divides.
    expected = WEIGHT - LR * (clipped + DECAY * WEIGHT)
    torch.testing.assert_close(net.weight.detach(), expected, rtol=1e-6, atol=0)


def test_by_hand_in_the_right_place_it_is_what_the_optimizer_does():
    by_hand = step_by_hand(after_backward=add_in_place)
    assert torch.equal(by_hand, right_update(DECAY))
    assert torch.equal(by_hand, step_by_hand(optimizer_decay=DECAY))


def test_the_notebooks_keyword_is_not_even_python():
    with pytest.raises(SyntaxError):
        compile("param.grad.add(param.data, lambda=0.001)", "cell", "exec")


def test_before_backward_there_is_no_gradient_to_add_to():
    assert torch.equal(step_by_hand(before_backward=add_in_place), right_update(0))
    # The optimizer's own decay is then the only one, and hides the mistake.
    hidden = step_by_hand(before_backward=add_in_place, optimizer_decay=DECAY)
    assert torch.equal(hidden, right_update(DECAY))


def test_before_backward_it_is_added_to_zeros_that_backward_then_adds_to():
    kept = {"before_backward": add_in_place, "set_to_none": False}
    assert torch.equal(step_by_hand(**kept), right_update(DECAY))
    twice = step_by_hand(**kept, optimizer_decay=DECAY)
    assert torch.equal(twice, right_update(2 * DECAY))


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("place", ["before_backward", "after_backward"])
def test_out_of_place_it_does_nothing_at_all(place, set_to_none):
    result = step_by_hand(**{place: add_out_of_place}, set_to_none=set_to_none)
    assert torch.equal(result, right_update(0))


def test_on_top_of_the_optimizers_own_it_is_one_sgd_with_twice_the_decay():
    doubled = step_by_hand(after_backward=add_in_place, optimizer_decay=DECAY)
    assert torch.equal(doubled, right_update(2 * DECAY))
    assert torch.equal(doubled, step_by_hand(optimizer_decay=2 * DECAY))
    assert not torch.equal(doubled, right_update(DECAY))
