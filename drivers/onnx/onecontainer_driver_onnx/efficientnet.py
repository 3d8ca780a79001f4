"""Builds the ONNX graph of EfficientNet-Lite0 from the tensors of its PyTorch state dict.

The layout is the one of TensorFlow's reference implementation, which the weights were trained with: mobile inverted bottleneck
blocks without squeeze-and-excitation, ReLU6, and padding as TensorFlow's SAME does it (more at the end: ONNX ``SAME_UPPER``).
Batch normalisation is folded into the convolution before it.

Source: Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", and the EfficientNet-Lite
variants of the TensorFlow TPU repository.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
IMAGE_SIZE = 224
CLASSES = 1000
BATCH_NORM_EPSILON = 1e-3


@dataclass(frozen=True, slots=True)
class Stage:
    """Blocks of one width. Only the first block of a stage has the stride and changes the width."""

    repeats: int
    kernel: int
    stride: int
    expand: int
    inputs: int
    outputs: int


# Lite keeps the stem and the head of B0 and drops the squeeze-and-excitation; for Lite0 width and depth factors are 1.
STAGES = (
    Stage(1, 3, 1, 1, 32, 16),
    Stage(2, 3, 2, 6, 16, 24),
    Stage(2, 5, 2, 6, 24, 40),
    Stage(3, 3, 2, 6, 40, 80),
    Stage(3, 5, 1, 6, 80, 112),
    Stage(4, 5, 2, 6, 112, 192),
    Stage(1, 3, 1, 6, 192, 320),
)

State = Mapping[str, npt.NDArray[Any]]


class _Graph:
    def __init__(self, state: State) -> None:
        self._state = state
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = [
            numpy_helper.from_array(np.array(0.0, np.float32), "relu6.min"),
            numpy_helper.from_array(np.array(6.0, np.float32), "relu6.max"),
        ]

    def constant(self, name: str, values: npt.NDArray[Any]) -> str:
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(values, np.float32), name))
        return name

    def add(self, kind: str, name: str, inputs: list[str], **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def tensor(self, name: str) -> npt.NDArray[np.float64]:
        if name not in self._state:
            raise ValueError(f"the weights have no {name}")
        return self._state[name].astype(np.float64)

    def conv(self, x: str, conv: str, norm: str, *, stride: int = 1, depthwise: bool = False, relu: bool = True) -> str:
        """Convolution, batch normalisation folded into it (in float64), and ReLU6."""
        weight = self.tensor(f"{conv}.weight")
        factor = self.tensor(f"{norm}.weight") / np.sqrt(self.tensor(f"{norm}.running_var") + BATCH_NORM_EPSILON)
        bias = self.tensor(f"{norm}.bias") - self.tensor(f"{norm}.running_mean") * factor
        y = self.add(
            "Conv",
            conv,
            [
                x,
                self.constant(f"{conv}.weight", weight * factor[:, None, None, None]),
                self.constant(f"{conv}.bias", bias),
            ],
            kernel_shape=weight.shape[2:],
            strides=[stride, stride],
            group=weight.shape[0] if depthwise else 1,
            auto_pad="SAME_UPPER",
        )
        return self.add("Clip", f"{conv}.relu6", [y, "relu6.min", "relu6.max"]) if relu else y

    def block(self, x: str, name: str, stage: Stage, *, first: bool) -> str:
        y = x
        if stage.expand != 1:
            y = self.conv(y, f"{name}._expand_conv", f"{name}._bn0")
        stride = stage.stride if first else 1
        y = self.conv(y, f"{name}._depthwise_conv", f"{name}._bn1", stride=stride, depthwise=True)
        y = self.conv(y, f"{name}._project_conv", f"{name}._bn2", relu=False)
        # The residual is there wherever the shape stays; only a stage's first block may change it.
        same_shape = stride == 1 and (not first or stage.inputs == stage.outputs)
        return self.add("Add", f"{name}.add", [y, x]) if same_shape else y


def build_lite0(state: State) -> onnx.ModelProto:
    """The network: float32 ``images`` (batch, 3, 224, 224) in, float32 ``logits`` (batch, 1000) out.

    Raises:
        ValueError: the state dict is not one of EfficientNet-Lite0.
    """
    graph = _Graph(state)
    x = graph.conv("images", "_conv_stem", "_bn0", stride=2)
    index = 0
    for stage in STAGES:
        for repeat in range(stage.repeats):
            x = graph.block(x, f"_blocks.{index}", stage, first=repeat == 0)
            index += 1
    x = graph.conv(x, "_conv_head", "_bn1")
    x = graph.add("GlobalAveragePool", "pool", [x])
    x = graph.add("Flatten", "flat", [x], axis=1)
    weights = [
        graph.constant("_fc.weight", graph.tensor("_fc.weight")),
        graph.constant("_fc.bias", graph.tensor("_fc.bias")),
    ]
    graph.add("Gemm", "logits", [x, *weights], transB=1)
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "efficientnet-lite0",
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, IMAGE_SIZE, IMAGE_SIZE])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
            graph.initializers,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        producer_name="onecontainer",
        ir_version=8,  # the oldest that has opset 17, so that older runtimes read it too
    )
    onnx.checker.check_model(model, full_check=True)
    return model
