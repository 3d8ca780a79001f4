"""ONNX Runtime as a oneContainer driver: image classification and any other ONNX model."""

from __future__ import annotations

from onecontainer_driver_onnx.driver import OnnxDriver

__all__ = ["OnnxDriver"]
