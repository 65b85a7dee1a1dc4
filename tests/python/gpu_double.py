"""Torch tensors that claim to be on a GPU but use host memory, to test the code before a kernel launch.

`as_if_on_gpu()` is a mode in which `.cuda()` and `device="cuda"` make such tensors, and results computed from them are
such tensors too; their DLPack record says kDLCUDA. Kernels do not run, so their results are never available.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode

K_DL_CUDA = 2
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


class _Tensor(ctypes.Structure):
    """The head of DLPack's DLManagedTensor."""

    _fields_ = [("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32)]


class OnGpu(torch.Tensor):
    """A tensor that answers queries as a torch tensor on GPU 0 would."""

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return GPU

    def __dlpack__(self, *, stream: int | None = None, **_: Any) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            capsule = torch.utils.dlpack.to_dlpack(self.as_subclass(torch.Tensor))
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        _Tensor.from_address(pointer(capsule, b"dltensor")).device_type = K_DL_CUDA
        return capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return K_DL_CUDA, 0


class _Mode(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function is torch.Tensor.cpu:
            with torch._C.DisableTorchFunctionSubclass():
                return args[0].as_subclass(torch.Tensor)
        if function is torch.Tensor.cuda:
            return args[0].as_subclass(OnGpu)
        there = any(isinstance(each, OnGpu) for each in _tensors(args, kwargs))
        there |= any(_is_gpu(each) for each in (*args, *kwargs.values()))
        args = tuple(CPU if _is_gpu(each) else each for each in args)
        kwargs = {name: CPU if _is_gpu(each) else each for name, each in kwargs.items()}
        result = function(*args, **kwargs)
        return _on_gpu(result) if there else result


def _is_gpu(argument: Any) -> bool:
    return argument == "cuda" or (isinstance(argument, torch.device) and argument.type == "cuda")


def _tensors(*given: Any) -> Iterator[torch.Tensor]:
    for each in given:
        if isinstance(each, torch.Tensor):
            yield each
        elif isinstance(each, (list, tuple)):
            yield from _tensors(*each)
        elif isinstance(each, dict):
            yield from _tensors(*each.values())


def _on_gpu(result: Any) -> Any:
    if isinstance(result, torch.Tensor):
        return result.as_subclass(OnGpu)
    if type(result) in (list, tuple):
        return type(result)(_on_gpu(each) for each in result)
    return result


@contextlib.contextmanager
def as_if_on_gpu() -> Iterator[None]:
    stream = type("Stream", (), {"cuda_stream": 0})()
    with mock.patch.object(torch.cuda, "current_stream", lambda device=None: stream), _Mode():
        yield
