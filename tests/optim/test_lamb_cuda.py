"""LAMB on a GPU: the host never waits for it, and a CUDA graph can hold the step."""

import pytest
import torch

from deit_fast.optim.base import WeightAverage
from deit_fast.optim.lamb import Lamb
from tests.optim.test_lamb_triton import DEVICE, flat, give, groups, parameters, tensors, train


@pytest.mark.gpu
def test_the_host_never_waits() -> None:
    params = parameters(tensors(0, 0.1))
    averages = [p.detach().clone() for p in params]
    lr = torch.tensor(1e-2, device=DEVICE)
    optimizer = Lamb(groups(params), lr=lr, average=WeightAverage(params, averages, 0.9))
    train(optimizer, params, range(2))
    grads = [[g.to(DEVICE) for g in tensors(seed, 0.1)] for seed in range(3)]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for each in grads:  # other addresses every time: the tables are uploaded again
            for param, grad in zip(params, each, strict=True):
                param.grad = grad
            optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("moved", [False, True], ids=["same-gradients", "gradients-of-the-graph"])
def test_a_graph_can_hold_the_step(moved: bool) -> None:
    """And goes on being right after an eager step with gradients elsewhere."""
    runs = []
    for captured in (False, True):
        params = parameters(tensors(0, 0.1))
        averages = [p.detach().clone() for p in params]
        lr = torch.tensor(1e-2, device=DEVICE)
        optimizer = Lamb(groups(params), lr=lr, average=WeightAverage(params, averages, 0.9))
        static = [torch.zeros_like(p) for p in params]

        def step(optimizer: Lamb = optimizer, params: list = params, static: list = static) -> None:
            for param, grad in zip(params, static, strict=True):
                param.grad = grad.clone() if moved else grad
            optimizer.step()

        def feed(seed: int, static: list = static) -> None:
            for grad, value in zip(static, tensors(seed, 0.1), strict=True):
                grad.copy_(value)

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for seed in range(3):
                feed(seed)
                step()
        torch.cuda.current_stream().wait_stream(side)
        replay = step
        if captured:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                step()
            replay = graph.replay
        for seed in range(3, 9):
            feed(seed)
            lr.fill_(1e-2 / seed)
            if seed == 5:
                give(params, tensors(50, 0.1))
                optimizer.step()
            replay()
        runs.append(flat([*params, *averages]))
    assert torch.equal(*runs)
