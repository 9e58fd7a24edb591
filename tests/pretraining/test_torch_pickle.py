"""Files of PyTorch read without it: the same arrays as PyTorch reads, and no code from hostile files is executed."""

from __future__ import annotations

import io
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from psla_jax.pretraining import torch_pickle
from psla_jax.pretraining.torch_pickle import DamagedError, ForeignObjectError


def tensors() -> dict[str, torch.Tensor]:
    base = torch.arange(24.0).reshape(4, 6)
    kinds = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8)
    return {
        **{str(kind): torch.tensor([[1, -2], [3, 4]], dtype=kind) for kind in (*kinds, torch.uint8, torch.bool)},
        "transposed": base.T,
        "part": base[1:3, 2:4],
        "every second": base[:, ::2],
        "shared": base,
        "empty": torch.zeros(0, 3),
        "number": torch.tensor(2.5),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "channels last": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
    }


@pytest.mark.parametrize("zipped", [True, False])
def test_every_kind_of_tensor_is_read_as_pytorch_reads_it(zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    torch.save(tensors(), path, _use_new_zipfile_serialization=zipped)
    found = torch_pickle.read(path)
    expected = torch.load(path, weights_only=True)
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].shape == tuple(tensor.shape)
        assert str(found[name].dtype) == str(tensor.dtype).removeprefix("torch.")
        np.testing.assert_array_equal(found[name].astype(np.float64), tensor.detach().double().numpy())


@pytest.mark.parametrize("zipped", [True, False])
def test_a_state_dict_with_its_metadata_and_other_values_is_read(zipped: bool, tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    path = tmp_path / "file.pth"
    torch.save({"epoch": 3, "name": "a", "model": module.state_dict()}, path, _use_new_zipfile_serialization=zipped)
    found = torch_pickle.read(path)
    assert (found["epoch"], found["name"]) == (3, "a")
    for name, tensor in module.state_dict().items():
        np.testing.assert_array_equal(found["model"][name], tensor.numpy())


def test_the_byte_order_is_that_of_the_file(tmp_path: Path) -> None:
    torch.save({"a": torch.tensor([1.5, 2.0])}, tmp_path / "file.pth")
    swapped = rewritten(tmp_path / "file.pth", {"byteorder": b"big", "data/0": np.array([1.5, 2.0], ">f4").tobytes()})
    np.testing.assert_array_equal(torch_pickle.read(swapped)["a"], [1.5, 2.0])


def rewritten(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    """Returns a copy of an archive with other contents of some members."""
    target = path.with_suffix(".rewritten.pth")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w", compression) as archive:
        for name in source.namelist():
            archive.writestr(name, members.get(name.partition("/")[2], source.read(name)))
    return target


def archive(path: Path, pickled: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/data/0", b"\0" * 8)
    return path


def text(value: str) -> bytes:
    return pickle.BINUNICODE + struct.pack("<I", len(value)) + value.encode()


def imports(trace: str) -> dict[str, bytes]:
    """Pickles with every opcode that imports a name; each would run ``os.mkdir(trace)``."""
    head, argument, end = pickle.PROTO + b"\4", text(trace), pickle.STOP
    by_name = pickle.GLOBAL + b"os\nmkdir\n"
    reduce = pickle.MARK + argument + pickle.TUPLE + pickle.REDUCE
    return {
        "GLOBAL": head + by_name + reduce + end,
        "STACK_GLOBAL": head + text("os") + text("mkdir") + pickle.STACK_GLOBAL + reduce + end,
        "dotted STACK_GLOBAL": head + text("collections") + text("OrderedDict.fromkeys.__self__")
        + pickle.STACK_GLOBAL + reduce + end,
        "INST": head + pickle.MARK + argument + pickle.INST + b"os\nmkdir\n" + end,
        "OBJ": head + pickle.MARK + by_name + argument + pickle.OBJ + end,
        "NEWOBJ": head + by_name + pickle.MARK + argument + pickle.TUPLE + pickle.NEWOBJ + end,
        "NEWOBJ_EX": head + by_name + pickle.MARK + argument + pickle.TUPLE + b"}" + pickle.NEWOBJ_EX + end,
        "EXT1": head + pickle.EXT1 + b"\7" + reduce + end,
        "EXT2": head + pickle.EXT2 + b"\7\0" + reduce + end,
        "EXT4": head + pickle.EXT4 + b"\7\0\0\0" + reduce + end,
    }  # fmt: skip


@pytest.mark.parametrize("opcode", imports(""))
def test_no_opcode_imports_a_name(opcode: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    with pytest.raises((ForeignObjectError, DamagedError)):
        torch_pickle.read(archive(tmp_path / "file.pth", imports(str(trace))[opcode]))
    assert not trace.exists()


def test_the_pickles_of_the_last_test_do_run_code(tmp_path: Path) -> None:
    for opcode in ("GLOBAL", "STACK_GLOBAL", "INST", "OBJ"):
        trace = tmp_path / opcode
        pickle.loads(imports(str(trace))[opcode])
        assert trace.is_dir()


ALLOWED = {
    "function": pickle.GLOBAL + b"torch._utils\n_rebuild_tensor_v2\n",
    "type": pickle.GLOBAL + b"torch\nFloatStorage\n",
    "dictionary": pickle.GLOBAL + b"collections\nOrderedDict\n",
}


@pytest.mark.parametrize("name", ALLOWED)
def test_a_pickle_changes_nothing_outside_itself(name: str, tmp_path: Path) -> None:
    state = pickle.EMPTY_DICT + text("x") + pickle.BININT1 + b"\1" + pickle.SETITEM
    slots = pickle.MARK + pickle.EMPTY_DICT + state + pickle.TUPLE
    for change in (state, slots):
        pickled = pickle.PROTO + b"\2" + ALLOWED[name] + change + pickle.BUILD + pickle.STOP
        with pytest.raises(DamagedError):
            torch_pickle.read(archive(tmp_path / "file.pth", pickled))
    assert not hasattr(OrderedDict, "x")
    torch.save(tensors(), tmp_path / "intact.pth")
    assert len(torch_pickle.read(tmp_path / "intact.pth")) == len(tensors())


def rebuilt(size: int = 2, offset: int = 0, shape: tuple = (2,), strides: tuple = (1,), key: str = "0") -> bytes:
    """A pickle of a tensor of two float32 values."""
    storage, out = object(), io.BytesIO()

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: object) -> object:
            return ("storage", torch.FloatStorage, key, "cpu", size) if value is storage else None

    class Tensor:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (storage, offset, shape, strides, False, OrderedDict())

    Pickler(out, 2).dump({"a": Tensor()})
    return out.getvalue()


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 3},
        {"size": -1},
        {"offset": 1},
        {"offset": -1},
        {"shape": (3,)},
        {"shape": (-2,)},
        {"shape": (2, 2)},
        {"shape": (1 << 40,), "strides": (0,)},
        {"shape": (1 << 62, 4), "strides": (0, 0)},
        {"strides": (2,)},
        {"strides": (-1,)},
        {"key": "../../etc/passwd"},
        {"key": "7"},
    ],
)
def test_sizes_that_contradict_the_file_are_damage(wrong: dict, tmp_path: Path) -> None:
    assert torch_pickle.read(archive(tmp_path / "right.pth", rebuilt()))["a"].tolist() == [0, 0]
    with pytest.raises(DamagedError):
        torch_pickle.read(archive(tmp_path / "wrong.pth", rebuilt(**wrong)))


def test_lists_that_contain_themselves_or_each_other_many_times_end(tmp_path: Path) -> None:
    nested: list = []
    for _ in range(60):
        nested = [nested] * 10
    circle: list = []
    circle.append(circle)
    found = torch_pickle.read(archive(tmp_path / "file.pth", pickle.dumps({"nested": nested, "circle": circle})))
    assert set(found) == {"nested", "circle"}


@pytest.mark.parametrize("content", [b"", b"PK\3\4", b"\x80\2.", b"\x80\2}q\0.", b"hello"])
def test_other_content_is_damage(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    path.write_bytes(content)
    with pytest.raises(DamagedError):
        torch_pickle.read(path)


def test_compressed_archives_are_refused(tmp_path: Path) -> None:
    torch.save(tensors(), tmp_path / "file.pth")
    with pytest.raises(DamagedError, match="another zip archive"):
        torch_pickle.read(rewritten(tmp_path / "file.pth", {}, zipfile.ZIP_DEFLATED))


@pytest.mark.parametrize("zipped", [True, False])
def test_every_truncation_is_damage(zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    torch.save({"a": torch.arange(3.0)}, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(DamagedError):
            torch_pickle.read(path)


def test_pytorch_is_not_imported(tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    torch.save({"a": torch.ones(2)}, path)
    code = (
        "import sys, pathlib; sys.modules['torch'] = None\n"
        "from psla_jax.pretraining import torch_pickle\n"
        "print(torch_pickle.read(pathlib.Path(sys.argv[1]))['a'].tolist())"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, str(path)]
    assert subprocess.run(command, env=environment, capture_output=True, text=True).stdout == "[1.0, 1.0]\n"
