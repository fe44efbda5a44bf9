"""Many tensors come to the host in one piece."""

from __future__ import annotations

import torch

from panoptic_mapper.transfers import to_host


def test_tensors_of_all_types_come_back_as_they_were() -> None:
    tensors = [
        torch.tensor([True, False, True]),
        torch.tensor([[2**40 + 1, -3]]),
        torch.arange(6.0).reshape(2, 3).T,  # not contiguous
        torch.zeros(0, 4, dtype=torch.float64),
        torch.tensor(7, dtype=torch.int32),
        torch.tensor([1.5], dtype=torch.float16),
        torch.arange(9.0).reshape(1, 9)[:, 4],  # contiguous, with a stride of 9
    ]
    for actual, expected in zip(to_host(*tensors), tensors, strict=True):
        assert actual.dtype == expected.dtype
        assert actual.data_ptr() != expected.data_ptr() or expected.numel() == 0
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)
