"""PReLU with its own gradient: against PyTorch's, and against finite differences."""

import pytest

torch = pytest.importorskip("torch")

from edgeid.converters.networks.prelu import PReLU, prelu  # noqa: E402


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (4, 3), (2, 3, 7)])
@pytest.mark.parametrize("slopes", [1, 3])
def test_gradients_agree_with_finite_differences(shape, slopes):
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    slope = torch.rand(slopes, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(prelu, (x, slope))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_module_is_torch_s_in_training_and_in_use(dtype):
    torch.manual_seed(0)
    x = torch.randn(4, 8, 6, 5).to(memory_format=torch.channels_last)
    theirs, ours = torch.nn.PReLU(8), PReLU(8)
    ours.load_state_dict(theirs.state_dict())
    results = []
    for module in (theirs, ours):
        leaf = x.clone().requires_grad_(True)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            y = module(leaf.to(dtype))
        y.float().square().sum().backward()
        results.append((y, leaf.grad, module.weight.grad))
    close = {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {}
    for found, wanted in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(found, wanted, **close)
    torch.testing.assert_close(ours.eval()(x), theirs(x))


def test_where_the_input_is_zero_the_slope_counts():
    # as torch has it: the gradient at 0 is that of the negative side
    x = torch.zeros(1, 1, 1, 1, requires_grad=True)
    prelu(x, torch.tensor([0.25])).sum().backward()
    assert x.grad.item() == 0.25
