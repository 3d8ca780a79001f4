"""Reads a state dict out of a file that ``torch.save`` wrote in its legacy format (before PyTorch 1.6), without PyTorch.

Such a file is five pickles (magic number, protocol version, system info, the object, the keys of the storages) and then the
storages: for each key, the number of elements (int64) and the raw little-endian elements. Pickles can run code, so the unpickler
here knows four names and refuses all others.

Source: ``torch.serialization._legacy_save``.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL_VERSION = 1001

_DTYPES: dict[str, str] = {
    "HalfStorage": "<f2",
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "ByteStorage": "<u1",
    "CharStorage": "<i1",
    "ShortStorage": "<i2",
    "IntStorage": "<i4",
    "LongStorage": "<i8",
    "BoolStorage": "?",
}


class TorchFileError(ValueError):
    """The file is not a legacy torch file with nothing but tensors in it."""


@dataclass(slots=True)
class _Storage:
    dtype: np.dtype[Any]
    count: int
    data: npt.NDArray[Any] | None = None


@dataclass(frozen=True, slots=True)
class _View:
    """A tensor as the pickle has it: a window on a storage whose elements come later in the file."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self) -> npt.NDArray[Any]:
        data = self.storage.data
        if data is None:
            raise TorchFileError("a tensor's storage is missing")
        if any(n < 0 for n in (self.offset, *self.shape, *self.strides)):
            raise TorchFileError("a tensor has a negative offset, shape or stride")
        last = self.offset + sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True) if n > 0)
        if 0 not in self.shape and last >= data.size:
            raise TorchFileError("a tensor reaches beyond its storage")
        window = np.lib.stride_tricks.as_strided(
            data[self.offset :], self.shape, tuple(step * data.itemsize for step in self.strides), writeable=False
        )
        return np.ascontiguousarray(window).reshape(self.shape)


def _view(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _View:
    """Stands for ``torch._utils._rebuild_tensor_v2``."""
    if not isinstance(storage, _Storage):
        raise TorchFileError("a tensor without a storage")
    return _View(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


class _StorageType:
    """Stands for ``torch.FloatStorage`` and its like."""

    def __init__(self, dtype: str) -> None:
        self.dtype = np.dtype(dtype)


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="latin-1")
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) in {("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_tensor")}:
            return _view
        if module == "torch" and name in _DTYPES:
            return _StorageType(_DTYPES[name])
        raise TorchFileError(f"refuses to load {module}.{name}")

    def persistent_load(self, pid: Any) -> _Storage:
        match pid:
            case ("storage", _StorageType() as kind, str() as key, _, int() as count, None):
                return self.storages.setdefault(key, _Storage(kind.dtype, count))
        raise TorchFileError("an unknown kind of reference")


def read_state_dict(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Returns the tensors of a state dict by name.

    Raises:
        TorchFileError: it is another kind of file, it is damaged, or it holds anything but tensors.
    """
    with path.open("rb") as file:
        try:
            if _Unpickler(file).load() != MAGIC_NUMBER or _Unpickler(file).load() != PROTOCOL_VERSION:
                raise TorchFileError("not a legacy torch file")
            _Unpickler(file).load()  # system info: byte order and the sizes of C's integers
            unpickler = _Unpickler(file)
            views = unpickler.load()
            keys = _Unpickler(file).load()
        except (
            pickle.UnpicklingError,
            EOFError,
            AttributeError,
            IndexError,
            KeyError,
            TypeError,
            UnicodeDecodeError,
        ) as error:
            raise TorchFileError(f"not a legacy torch file: {error}") from error
        if not isinstance(keys, list) or not isinstance(views, dict):
            raise TorchFileError("not a state dict")
        for key in keys:
            storage = unpickler.storages.get(key)
            header = file.read(8)
            if storage is None or len(header) != 8 or int.from_bytes(header, "little") != storage.count:
                raise TorchFileError("a storage does not have its announced length")
            raw = file.read(storage.count * storage.dtype.itemsize)
            if len(raw) != storage.count * storage.dtype.itemsize:
                raise TorchFileError("the file is truncated")
            storage.data = np.frombuffer(raw, storage.dtype)
    if not all(isinstance(name, str) and isinstance(view, _View) for name, view in views.items()):
        raise TorchFileError("it holds more than tensors")
    return {name: view.array() for name, view in views.items()}
