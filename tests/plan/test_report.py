"""Plans from compiled steps of known memory and traffic, and the installation of compilers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import accelerators
import pytest

from psla_jax.cli import main
from psla_jax.config import RunConfig
from psla_jax.plan import compiler, report
from psla_jax.plan.compiler import Compiled, PlanTimeout, compile_step, compiler_folder
from psla_jax.plan.devices import DEVICES, PlanError
from psla_jax.plan.job import Memory
from psla_jax.plan.summary import AS_FORWARD, FORWARD, Collective, Summary

GB = 10**9


def summary(**changes) -> Summary:
    values = {
        "kernels": 1234,
        "read": 30e9,
        "written": 10e9,
        "flops": {"f32": 4e12, "f64": 1e10},
        "collectives": {"all-reduce": Collective(95, 6_000_000)},
        "convolutions": {FORWARD: 3},
        "products": {"f32 default": 7},
        "float64": 0,
        "callbacks": 0,
        "num_outputs": 12,
        "num_donated": 10,
        "unknown_loops": 0,
    }
    return Summary(**{**values, **changes})


def compiled(working: int = GB, **changes) -> Compiled:
    return Compiled(Memory(GB, 900_000_000, 900_000_000, working, 0), summary(**changes), 1.0)


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch: pytest.MonkeyPatch):
    """Nothing is installed."""
    monkeypatch.setattr(report, "compiler_folder", lambda *_: None)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch):
    """A compiler: a step needs 2 GB, and 0.1 GB per clip on a device."""
    sizes: list[tuple[str, int]] = []

    def compile_step(step, config, num_classes, device, num_devices, **_):
        sizes.append((step, config.data.batch_size))
        return compiled(GB + config.data.batch_size * GB // 10 // num_devices)

    monkeypatch.setattr(report, "compile_step", compile_step)
    return sizes


def test_a_plan_says_what_fits_and_what_bounds_a_step(fake, capsys):
    options = ["--classes", "527", "--device", "h100", "--devices", "2", "--data.batch-size", "40"]
    assert main.main(["plan", "audioset_full", *options]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert (
        "Compiled by XLA, not run: bounds are bytes over bandwidth and operations over peak, for one device." in lines
    )
    assert "memory 4 GB: fits in 63.7 GB (75% of 85, JAX's default)" in lines
    # 63.7 GB are 2 GB and 617 clips on each of two devices, rounded down to a multiple of eight.
    assert "largest batch about 1,232 clips, estimated from batches of 40 and 80" in lines
    assert "bytes moved 40 GB: 11.93 ms at 3.35 TB/s" in lines
    assert "products 4.01 TFLOP: 8.25 ms at the peak" in lines
    assert "clips per second at most 3,352" in lines
    assert "collectives 95 all-reduce of 6.0 MB in all" in lines
    assert fake == [("train", 40), ("train", 80), ("evaluation", 40)]


def test_a_batch_that_does_not_fit_is_said_and_halved_for_the_estimate(fake, capsys):
    assert main.main(["plan", "audioset_full", "--classes", "527", "--device", "v5e", "--data.batch-size", "200"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "memory 22 GB: DOES NOT FIT in 17.2 GB" in text
    # 17.18 GB are 2 GB and 151 clips.
    assert "largest batch about 144 clips, estimated from batches of 100 and 200" in text


def test_a_step_that_does_not_fit_with_a_single_clip_is_said(monkeypatch, capsys):
    def compile_step(step, config, *_, **__):
        return compiled(20 * GB + config.data.batch_size * GB)

    monkeypatch.setattr(report, "compile_step", compile_step)
    assert main.main(["plan", "demo", "--device", "v5e", "--data.batch-size", "1"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "largest batch none, not even one clip per device, estimated from batches of 1 and 2" in text


def test_a_step_that_takes_too_long_to_compile_does_not_hide_the_other(monkeypatch, capsys):
    def compile_step(step, *_, **__):
        if step == "train":
            raise PlanTimeout("the train step was not compiled within 1 s: raise --timeout.")
        return compiled()

    monkeypatch.setattr(report, "compile_step", compile_step)
    assert main.main(["plan", "demo", "--device", "v6e", "--timeout", "1"]) == 1
    out = capsys.readouterr().out
    assert "the train step was not compiled within 1 s: raise --timeout." in out
    assert "evaluation step\n  memory                2 GB: fits in 34.4 GB" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--device", "h1000"], "--device is 'h1000', which is unknown: choose one of a100, h100"),
        (["demo", "--devices", "0"], "--devices is 0: use at least one device."),
        (["demo", "--device", "v5e", "--devices", "3"], "3 TPUs form no slice: use one of 1, 4, 8"),
        (["demo", "--data.labels", "absent.csv"], "absent.csv', which cannot be read: give the number of classes with"),
    ],
)
def test_what_cannot_be_planned_is_one_sentence(capsys, arguments, message):
    assert main.main(["plan", *arguments]) == 2
    out, error = capsys.readouterr()
    assert message in error
    assert error.count("\n") == 1
    assert out == ""


def test_a_compiler_is_installed_once_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PSLA_CACHE", str(tmp_path))
    commands, lines = [], []

    def pip(command: list[str], **_):
        commands.append(command)
        folder = Path(command[command.index("--target") + 1])
        folder.mkdir()
        (folder / "plugin.py").touch()
        failed = len(commands) == 1
        return SimpleNamespace(returncode=int(failed), stderr="a\nERROR: No matching distribution found\n\n")

    monkeypatch.setattr(subprocess, "run", pip)
    with pytest.raises(PlanError, match=r"jax-cuda12-pjrt.* cannot be installed \(No matching distribution found\): "):
        compiler_folder("cuda", lines.append)
    assert list((tmp_path / "compilers").iterdir()) == []
    folder = compiler_folder("cuda", lines.append)
    assert folder.parent == tmp_path / "compilers"
    assert [path.name for path in folder.iterdir()] == ["plugin.py"]
    assert compiler_folder("cuda", lines.append) == folder
    assert len(commands) == len(lines) == 2
    assert commands[1][:5] == [sys.executable, "-m", "pip", "install", "--no-deps"]
    assert "MB to download" in lines[0]


@pytest.mark.parametrize(
    ("program", "timeout", "message"),
    [
        (
            "import time; time.sleep(60)",
            0.5,
            "the train step for 1 x NVIDIA H100 80GB HBM3 was not compiled within 0.5 s",
        ),
        ("raise ValueError('INTERNAL: no tiles')\n", 60, "cannot be compiled (ValueError: INTERNAL: no tiles): change"),
        ("import sys; sys.exit(9)", 60, "cannot be compiled (exit code 9): change the model or the batch size."),
    ],
)
def test_a_compilation_that_fails_is_one_sentence(tmp_path, monkeypatch, program, timeout, message):
    (tmp_path / "failing_worker.py").write_text(program)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(compiler, "MODULE", "failing_worker")
    monkeypatch.setattr(compiler, "compiler_folder", lambda *_: tmp_path)
    with pytest.raises(PlanError) as caught:
        compile_step("train", RunConfig(), 527, DEVICES["h100"], 1, timeout=timeout, log=print)
    assert message in str(caught.value)


@pytest.mark.parametrize(("working", "code"), [(1.0, 0), (1.2, 1)])
def test_the_check_ends_with_1_and_a_sentence_for_each_failure(monkeypatch, capsys, working, code):
    recorded = dict.fromkeys(accelerators.RECORDED, accelerators.Recorded(working_memory=GB, all_reduces=95))
    monkeypatch.setattr(accelerators, "RECORDED", recorded)
    monkeypatch.setattr(
        report,
        "compile_step",
        lambda step, *_, **__: compiled(int(working * GB), products={accelerators.PRODUCTS[step]: 7}),
    )
    assert accelerators.main(accelerators.Options(check=True)) == code
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + code
    assert all(line.startswith("accelerators: ") for line in lines)


def test_the_table_has_a_row_per_step_device_and_precision(monkeypatch, capsys):
    monkeypatch.setattr(report, "compile_step", lambda *_, **__: compiled())
    options = accelerators.Options(device=("h100", "a100"), devices=(8,), precision=("tf32", "bf16"))
    assert accelerators.main(options) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("| train", "| eval"))]
    assert rows[0] == "| train tf32 | 8 x h100 | 96 | 2.00 | 1234 | 40.0 | 11.9 | 8.2 | 95 | 6.0 |"
    assert [row.split(" |")[:2] for row in rows[1:3]] == [
        ["| evaluation highest", " 8 x h100"],
        ["| train bf16", " 8 x h100"],
    ]
    assert len(rows) == 6
    assert accelerators.main(accelerators.Options(device=("h1",))) == 2


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ""),
        ({"working": int(1.09 * GB)}, ""),
        ({"working": int(1.11 * GB)}, "its working memory is 1,110,000,000 bytes, which differs by more than 10% from"),
        ({"working": int(0.89 * GB)}, "its working memory is 890,000,000 bytes"),
        ({"callbacks": 1}, "it calls the host 1 times"),
        ({"num_donated": 9}, "3 of its outputs have memory of their own instead of 2"),
        ({"collectives": {"all-gather": Collective(1, 4)}}, "devices communicate by all-gather"),
        ({"collectives": {"all-reduce": Collective(96, 4)}}, "it has 96 all-reduces instead of at most 95"),
        ({"convolutions": {AS_FORWARD: 2}}, "2 filter gradients are forward convolutions for cuDNN"),
        ({"float64": 3}, "3 kernels outside the frontend compute in float64"),
        ({"products": {"f32 default": 7, "f32 highest": 1}}, "products outside the frontend are f32 highest instead"),
    ],
)
def test_the_check_names_each_property_that_a_step_lacks(changes, expected):
    recorded = accelerators.Recorded(working_memory=GB, all_reduces=95)
    found = list(accelerators.problems("train", compiled(**changes), recorded))
    assert len(found) == bool(expected)
    assert expected in "".join(found)


@pytest.mark.parametrize(("device", "expected"), [("h100", 450), ("a100", 300), ("b200", 900), ("v5e", 0)])
def test_the_model_of_scaling_is_for_devices_whose_links_are_known(device, expected):
    request = accelerators.Options().request(device, 8, "tf32", 96)
    lines = [text for _, text in report.rows(request, "train", compiled(), None)]
    assert sum("devices: " in line for line in lines) == (3 if expected else 0)
    assert any(f"15 us and {expected} GB/s in machines of 8" in line for line in lines) == bool(expected)
