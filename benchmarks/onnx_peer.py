"""onnxruntime's GroupQueryAttention over a cache that it appends to in place, as its generation does."""

from __future__ import annotations

from typing import Any

import numpy as np


class GroupQueryAttention:
    """Causal attention of the last `queries` tokens of (1, heads, queries, d) and (1, kv_heads, keys, d) float32."""

    def __init__(self, q: Any, k: Any, v: Any, threads: int) -> None:
        import onnxruntime

        (_, heads, queries, width), (_, kv_heads, keys, _) = q.shape, k.shape
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # as the peers' threads, which sleep
        self._session = onnxruntime.InferenceSession(
            _model(heads, kv_heads), options, providers=["CPUExecutionProvider"]
        )
        new = slice(keys - queries, keys)
        rows = lambda tensor: np.ascontiguousarray(tensor.transpose(0, 2, 1, 3).reshape(1, queries, -1))
        value = onnxruntime.OrtValue.ortvalue_from_numpy
        cached = [value(np.array(tensor)) for tensor in (k, v)]
        feeds = {
            "query": value(rows(q)),
            "key": value(rows(k[:, :, new])),
            "value": value(rows(v[:, :, new])),
            "past_key": cached[0],
            "past_value": cached[1],
            "seqlens_k": value(np.array([keys - 1], dtype=np.int32)),
            "total_sequence_length": value(np.array(keys, dtype=np.int32)),
        }
        self._output = value(np.zeros((1, queries, heads * width), dtype=np.float32))
        self._binding = self._session.io_binding()
        for name, given in feeds.items():
            self._binding.bind_ortvalue_input(name, given)
        for name, given in zip(("output", "present_key", "present_value"), (self._output, *cached), strict=True):
            self._binding.bind_ortvalue_output(name, given)
        self._kept, self._shape = feeds, (1, queries, heads, width)

    def __call__(self) -> Any:
        self._session.run_with_iobinding(self._binding)
        return self._output.numpy().reshape(self._shape).transpose(0, 2, 1, 3)


def _model(heads: int, kv_heads: int) -> bytes:
    from onnx import TensorProto, helper

    tensor, integer = TensorProto.FLOAT, TensorProto.INT32
    inputs = [helper.make_tensor_value_info(name, tensor, None) for name in ("query", "key", "value")]
    inputs += [helper.make_tensor_value_info(name, tensor, None) for name in ("past_key", "past_value")]
    inputs += [
        helper.make_tensor_value_info("seqlens_k", integer, [1]),
        helper.make_tensor_value_info("total_sequence_length", integer, []),
    ]
    outputs = [helper.make_tensor_value_info(name, tensor, None) for name in ("output", "present_key", "present_value")]
    node = helper.make_node(
        "GroupQueryAttention",
        [info.name for info in inputs],
        [info.name for info in outputs],
        domain="com.microsoft",
        num_heads=heads,
        kv_num_heads=kv_heads,
    )
    graph = helper.make_graph([node], "attention", inputs, outputs)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    return bytes(model.SerializeToString())
