"""Which arithmetic a machine gets."""

import pytest
import torch

from minicai import device


@pytest.mark.parametrize(
    "kind, flags, dtype",
    [
        ("cpu", "avx2 avx512f", torch.float32),
        ("cpu", "avx512f avx512_bf16", torch.float32),  # slower there
        ("cpu", "avx512f avx512_bf16 amx_bf16 amx_tile", torch.bfloat16),
        ("cpu", "", torch.float32),
        ("cuda", "", torch.bfloat16),
        ("mps", "amx_bf16", torch.float32),
    ],
)
def test_bfloat16_is_used_where_it_is_fast(monkeypatch, kind, flags, dtype):
    monkeypatch.setattr(device, "cpu_info", lambda key: flags)
    assert device.fast_dtype(kind) == dtype
    if kind == "cpu":
        with device.autocast(kind):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
