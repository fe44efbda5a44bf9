"""Many tensors come to the host in one piece."""

from __future__ import annotations

import pytest
import torch

from panoptic_mapper.transfers import AsyncHostCopy, to_host


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


def test_a_copy_to_the_host_holds_what_the_tensor_held() -> None:
    tensor = torch.arange(12, dtype=torch.int32).reshape(3, 4)
    torch.testing.assert_close(AsyncHostCopy(tensor).wait(), torch.arange(12, dtype=torch.int32).reshape(3, 4))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_copy_from_a_gpu_is_pinned_and_not_disturbed_by_what_follows() -> None:
    tensor = torch.arange(1_000_000, device="cuda")
    copies = [AsyncHostCopy(tensor) for _ in range(3)]
    tensor.zero_()
    for copy in copies:
        assert copy.wait().is_pinned()
        assert torch.equal(copy.wait(), torch.arange(1_000_000))
