"""The ResNet: its sizes, its residual path, and what it refuses."""

import pytest
import torch

from torchref.resnet import BasicBlock, ResNet


def test_every_stage_but_the_first_halves_the_image():
    model = ResNet(in_channels=2, num_classes=5, widths=(3, 4, 6), depth=2)
    seen = []
    for stage in model.stages:
        stage.register_forward_hook(lambda *args: seen.append(tuple(args[2].shape)))
    assert model(torch.ones(2, 2, 8, 8)).shape == (2, 5)
    assert seen == [(2, 3, 8, 8), (2, 4, 4, 4), (2, 6, 2, 2)]
    shortcuts = [[len(b.downsample) for b in stage] for stage in model.stages]
    assert shortcuts == [[0, 0], [2, 0], [2, 0]]


def test_a_block_adds_its_input():
    block = BasicBlock(3, 3).eval()
    with torch.no_grad():
        block.bn2.weight.zero_()
    x = torch.rand(1, 3, 4, 4)
    assert torch.equal(block(x), x)
    with torch.no_grad():
        block.bn2.bias.fill_(-2.0)
    assert (block(x) == 0).all()


def test_sizes_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="depth is 0; it must be at least 1"):
        ResNet(3, 5, depth=0)
    with pytest.raises(ValueError, match="the number of widths is 0; it must be at le"):
        ResNet(3, 5, widths=())
