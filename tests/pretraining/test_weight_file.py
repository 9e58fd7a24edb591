"""PyTorch weight files: supported and rejected content, safe loading, and writing."""

from __future__ import annotations

import builtins
import hashlib
import io
import pickle
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from psla_jax.config import FrontendConfig, ModelConfig
from psla_jax.models.model_dir import ModelCard
from psla_jax.pretraining import weight_file
from psla_jax.pretraining.state_dict import PretrainingError
from psla_jax.vocabulary.vocabulary import Vocabulary

CARD = ModelCard(ModelConfig(), FrontendConfig(), Vocabulary(("/t/0",), ("Sound",)))
WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.count": torch.tensor(3)}


def saved(path: Path, content: object, **options) -> Path:
    torch.save(content, path, **options)
    return path


def test_reading_returns_arrays_by_name_and_the_hash_of_the_file(tmp_path: Path) -> None:
    path = saved(tmp_path / "weights.pth", WEIGHTS)
    file = weight_file.read(path)
    np.testing.assert_array_equal(file.arrays["a.weight"], np.arange(6, dtype=np.float32).reshape(2, 3))
    assert file.arrays["a.count"] == 3
    assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_files_of_old_pytorch_releases_are_read(tmp_path: Path) -> None:
    path = saved(tmp_path / "old.pth", WEIGHTS, _use_new_zipfile_serialization=False)
    np.testing.assert_array_equal(weight_file.read(path).arrays["a.weight"], WEIGHTS["a.weight"].numpy())


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_every_floating_type_becomes_float32(tmp_path: Path, kind: torch.dtype) -> None:
    path = saved(tmp_path / "weights.pth", {"a": torch.tensor([1.5, -2.0], dtype=kind)})
    array = weight_file.read(path).arrays["a"]
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, [1.5, -2.0])


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_weights_inside_a_training_checkpoint_are_found(tmp_path: Path, key: str) -> None:
    path = saved(tmp_path / "checkpoint.pth", {"epoch": 3, key: WEIGHTS, "loss": 0.1})
    assert set(weight_file.read(path).arrays) == set(WEIGHTS)


class Bomb:
    """Object whose unpickling creates a file, unless the reader refuses to execute code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (builtins.open, (str(self.path), "w"))


def optimizer_state() -> dict:
    layer = torch.nn.Linear(2, 2)
    adam = torch.optim.Adam(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    adam.step()
    return adam.state_dict()


REJECTED = {
    "absent": (lambda p: None, "there is no file"),
    "empty": (lambda p: p.write_bytes(b""), "is empty: download it again"),
    "text": (lambda p: p.write_text("hello"), "is not a file of PyTorch weights"),
    "web page": (lambda p: p.write_text("<!DOCTYPE html><html></html>"), "is a web page, not weights"),
    "optimizer": (lambda p: saved(p, optimizer_state()), "holds the state of an optimizer"),
    "list": (lambda p: saved(p, [torch.zeros(1)]), "holds a list, not weights by name"),
    "tensor": (lambda p: saved(p, torch.zeros(1)), "holds a tensor, not weights by name"),
    "numbers": (lambda p: saved(p, {"mAP": 0.44}), "holds a float under 'mAP' instead of weights"),
    "nothing": (lambda p: saved(p, {}), "holds nothing instead of weights"),
    "whole model": (lambda p: saved(p, torch.nn.Linear(2, 2)), "holds Python objects besides weights"),
    "sparse": (lambda p: saved(p, {"a": torch.eye(2).to_sparse()}), "under 'a' that is not a dense array"),
    "truncated, old release": (
        lambda p: p.write_bytes(saved(p, WEIGHTS, _use_new_zipfile_serialization=False).read_bytes()[:-30]),
        "is truncated or damaged",
    ),
    "truncated": (lambda p: p.write_bytes(saved(p, WEIGHTS).read_bytes()[:-300]), "is truncated or damaged"),
}


@pytest.mark.parametrize("kind", REJECTED)
def test_files_without_weights_are_errors_of_one_sentence(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file.pth"
    make, message = REJECTED[kind]
    make(path)
    with pytest.raises(PretrainingError, match=message) as caught:
        weight_file.read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_not_executed(tmp_path: Path, zipped: bool) -> None:
    trace = tmp_path / "trace"
    path = saved(tmp_path / "bomb.pth", {"a": torch.zeros(1), "b": Bomb(trace)}, _use_new_zipfile_serialization=zipped)
    if not zipped:
        pickle.load(io.BytesIO(pickle.dumps(Bomb(trace)))).close()
        assert trace.exists(), "unpickling the object creates the file"
        trace.unlink()
    with pytest.raises(PretrainingError, match="could run any code, so it was not opened"):
        weight_file.read(path)
    assert not trace.exists()


def test_without_pyweight_files_are_read_and_not_written(tmp_path: Path, monkeypatch) -> None:
    path = saved(tmp_path / "weights.pth", WEIGHTS)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert set(weight_file.read(path).arrays) == set(WEIGHTS)
    with pytest.raises(PretrainingError, match=r"out\.pth needs PyTorch: pip install torch"):
        weight_file.write(tmp_path / "out.pth", {}, CARD)


def test_a_safetensors_file_has_its_arrays_in_float32(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    content = {"a.weight": torch.tensor([1.5, -2.0], dtype=torch.float16), "a.count": torch.tensor(3)}
    safetensors.torch.save_file(content, path)
    file = weight_file.read(path)
    assert file.card is None
    assert file.arrays["a.weight"].dtype == np.float32
    np.testing.assert_array_equal(file.arrays["a.weight"], [1.5, -2.0])
    assert file.arrays["a.count"] == 3


def header(text: str, content: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text.encode() + content


TENSOR = '{"a": {"dtype": "F32", "shape": [%s], "data_offsets": [%s]}}'
BROKEN = {
    "empty": b"",
    "other content": b"hello, hello",
    "a length beyond the file": header("{}", length=1 << 40),
    "a shape beyond the data": header(TENSOR % ("1000000000", "0, 8"), b"\0" * 8),
    "an end beyond the file": header(TENSOR % ("2", "0, 4000000000"), b"\0" * 8),
    "an end before the start": header(TENSOR % ("2", "8, 0"), b"\0" * 8),
    "no arrays": header("{}"),
    "a wrong description": header('{"__metadata__": {"psla_jax": "{}"}, ' + (TENSOR % ("2", "0, 8"))[1:], b"\0" * 8),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_safetensors_files_that_lie_are_errors_of_one_sentence(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(BROKEN[kind])
    with pytest.raises(PretrainingError, match=r"cannot be read as safetensors|holds no arrays") as caught:
        weight_file.read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_written_files_can_be_loaded_by_pytorch(tmp_path: Path) -> None:
    path = tmp_path / "out.pth"
    weight_file.write(path, {"a": np.arange(6, dtype=np.float32).reshape(2, 3).T}, CARD)
    assert [p.name for p in tmp_path.iterdir()] == ["out.pth"]
    loaded = torch.load(path, weights_only=True)
    np.testing.assert_array_equal(loaded["a"].numpy(), np.arange(6).reshape(2, 3).T)


def test_a_failed_write_preserves_the_existing_file(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "out.pth"
    path.write_text("before")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(PretrainingError, match=r"out\.pth cannot be written \(No space"):
        weight_file.write(path, {"a": np.zeros(1, np.float32)}, CARD)
    assert [p.name for p in tmp_path.iterdir()] == ["out.pth"]
    assert path.read_text() == "before"
