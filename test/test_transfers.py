"""Many tensors come to the host in one piece."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from panoptic_mapper.transfers import AsyncHostCopy, to_device_together, to_host


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


def test_arrays_of_all_types_go_to_the_device_in_one_piece() -> None:
    rng = np.random.default_rng(0)
    arrays = [
        rng.integers(0, 256, (3, 5, 3), dtype=np.uint8),
        rng.random((3, 5), dtype=np.float32).T,  # not contiguous
        np.array([[2**40, -1]]),
        np.zeros((0, 4), np.float32),
        rng.integers(0, 9, (7,), dtype=np.int32),
    ]
    copies = to_device_together(arrays, torch.device("cpu"))
    expected = [array.copy() for array in arrays]
    for array in arrays:
        array[:] = 0  # what is written later is not in the copies
    for copy, array in zip(copies, expected, strict=True):
        assert copy.is_contiguous()
        assert copy.dtype == torch.from_numpy(array).dtype
        np.testing.assert_array_equal(copy.numpy(), array)
    assert len({copy.untyped_storage().data_ptr() for copy in copies}) == 1
    assert to_device_together([], torch.device("cpu")) == []
