"""Copies to the host, on the CPU; `tests.devices` counts them on an emulated GPU."""

import torch

from geffect.core.devices import Pairwise, matrices, to_host


def test_what_lies_on_the_host_is_not_copied() -> None:
    tensors = [torch.ones(2), torch.tensor(3), torch.zeros(0)]
    assert all(copy is tensor for copy, tensor in zip(to_host(tensors), tensors, strict=True))
    assert to_host([]) == []


def test_pairs_with_a_missing_tensor_have_zero() -> None:
    numbers = torch.tensor([[1.0, 2.0], [2.0, 3.0]], dtype=torch.float64)
    whole, spread, nothing = matrices([
        Pairwise(2, (0, 1), numbers),
        Pairwise(3, (0, 2), numbers),
        Pairwise(2, (), torch.zeros(0, 0, dtype=torch.int64)),
    ])
    assert torch.equal(whole, numbers)
    assert spread.tolist() == [[1.0, 0.0, 2.0], [0.0, 0.0, 0.0], [2.0, 0.0, 3.0]]
    assert (nothing.tolist(), nothing.dtype) == ([[0, 0], [0, 0]], torch.int64)
