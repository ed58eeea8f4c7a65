"""The GPT, against attention written out, and what a tied weight is."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from torchref.gpt import GPT, CausalSelfAttention

SIZES = {"vocab_size": 7, "block_size": 5, "n_embd": 6, "n_head": 3, "n_layer": 2}


def test_attention_is_a_loop_over_heads_and_positions():
    torch.manual_seed(0)
    layer, x = CausalSelfAttention(6, 3).double(), torch.randn(4, 6).double()
    q, k, v = layer.c_attn(x).detach().numpy().reshape(4, 3, 3, 2).swapaxes(0, 1)
    gathered = np.zeros((4, 3, 2))
    for head in range(3):
        for position in range(4):
            seen = slice(position + 1)
            scores = np.exp(k[seen, head] @ q[position, head] / np.sqrt(2))
            gathered[position, head] = scores / scores.sum() @ v[seen, head]
    expected = layer.c_proj(torch.tensor(gathered.reshape(4, 6)))
    torch.testing.assert_close(layer(x[None])[0], expected, rtol=1e-12, atol=1e-12)


def test_no_position_sees_the_future():
    torch.manual_seed(0)
    model = GPT(**SIZES)
    tokens = torch.tensor([[1, 2, 3, 4, 5]])
    changed = torch.tensor([[1, 2, 3, 6, 5]])
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(after[:, :3], before[:, :3])
    assert (after[:, 3:] - before[:, 3:]).abs().min() > 0


def test_the_embedding_is_one_parameter_under_two_names():
    model = GPT(**SIZES)
    assert {"wte.weight", "lm_head.weight"} < model.state_dict().keys()
    names = [name for name, _ in model.named_parameters()]
    assert "lm_head.weight" not in names
    tokens = torch.tensor([[1, 2]])
    F.cross_entropy(model(tokens)[0], torch.tensor([2, 3])).backward()
    # A token that is neither read nor near is still in every softmax.
    assert (model.wte.weight.grad.abs().sum(dim=1) > 0).all()


def test_the_first_weights_are_gpt_2s():
    torch.manual_seed(0)
    model = GPT(vocab_size=100, block_size=100, n_embd=100, n_head=2, n_layer=8)
    for name, param in model.named_parameters():
        if param.ndim == 2:
            std = 0.005 if name.endswith("c_proj.weight") else 0.02
            # At 10 000 draws or more the standard error is 0.7 %.
            assert param.std().item() == pytest.approx(std, rel=0.05), name
        else:
            first = 0.0 if name.endswith("bias") else 1.0
            assert (param == first).all(), name


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="n_layer is 0; it must be at least 1"):
        GPT(**SIZES | {"n_layer": 0})
    with pytest.raises(ValueError, match="n_head is 4; it must divide n_embd = 6"):
        GPT(**SIZES | {"n_head": 4})
    match = r"tokens has shape \(1, 6\); it must be \(B, T\) with T from 1 to 5"
    with pytest.raises(ValueError, match=match):
        GPT(**SIZES)(torch.zeros(1, 6, dtype=torch.long))
