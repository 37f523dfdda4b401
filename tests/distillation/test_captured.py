"""Captured functions, by a stand-in for CUDA graphs that runs anywhere, and by CUDA graphs where there are any."""

import pytest
import torch

from redream.distillation.captured import Captured, capture_for, plain_calls


def test_a_captured_function_gives_its_results_anew_for_new_inputs():
    def function(x, y):
        return x * y, x + y

    captured, one = Captured(function, plain_calls), torch.tensor([2.0, 3.0])
    first = captured(one, one)
    second = captured(one + 1, one)
    assert [r.tolist() for r in first] == [[4.0, 9.0], [4.0, 6.0]]  # not overwritten by the second call
    assert [r.tolist() for r in second] == [[6.0, 12.0], [5.0, 7.0]]
    assert Captured(torch.square, plain_calls)(one).tolist() == [4.0, 9.0]


def trained(capture, before=0):
    """A parameter, its optimizer's moments and the losses after steps of which the first `before` are not captured."""
    parameter = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = torch.optim.AdamW([parameter], lr=0.1)

    def step(target):
        optimizer.zero_grad(set_to_none=True)
        loss = (parameter - target).square().sum()
        loss.backward()
        optimizer.step()
        return loss.detach()

    targets = torch.tensor([[0.0, 1.0], [2.0, 2.0], [1.0, -1.0], [0.5, 0.0]])
    losses = [step(target) for target in targets[:before]]
    captured = Captured(step, capture, optimizer)
    losses += [captured(target) for target in targets[before:]]
    return parameter.detach(), [float(loss) for loss in losses], optimizer.state[parameter]["exp_avg_sq"]


@pytest.mark.parametrize("before", [0, 2])
def test_the_trial_calls_of_a_capture_leave_parameters_and_moments_as_they_were(before):
    plain, captured = trained(None, before), trained(plain_calls, before)
    assert torch.equal(plain[0], captured[0]) and plain[1] == captured[1] and torch.equal(plain[2], captured[2])


def test_a_capture_that_fails_is_said_once_and_the_function_called_as_it_is():
    def failing(call):
        call()
        raise RuntimeError("operation not permitted when stream is capturing")

    captured, one = Captured(torch.square, failing), torch.ones(2)
    with pytest.warns(UserWarning, match="could not be captured; this pass stays slow. operation not permitted"):
        assert torch.equal(captured(one), one)
    assert torch.equal(captured(2 * one), 4 * one)


def test_nothing_is_captured_on_the_cpu():
    assert capture_for(torch.device("cpu")) is None


@pytest.mark.gpu
def test_cuda_graphs_give_the_results_of_plain_calls():
    device = torch.device("cuda")
    weight = torch.randn(64, 64, device=device)
    captured = Captured(lambda x: (x @ weight).relu(), capture_for(device))
    for seed in range(3):
        x = torch.randn(8, 64, device=device, generator=torch.Generator(device).manual_seed(seed))
        torch.testing.assert_close(captured(x), (x @ weight).relu())
