"""Measures one part of ``benchmark.py`` for one implementation; a worker process of that script.

    python scripts/benchmark_rivals.py ours|released|tuned|onnxruntime|openvino PART FOLDER PRECISION
    python scripts/benchmark_rivals.py prepare "" FOLDER PRECISION

The first takes a measurement for each line on standard input and prints it as JSON. The second writes the weights,
recordings and model directory that all implementations share.
"""

from __future__ import annotations

import functools
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from psla_jax.config import Precision

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))  # for torch_reference

CLASSES, HEADS, FRAMES, SECONDS, RATE = 527, 4, 1056, 10, 16_000
SAMPLES = 400 + 160 * (FRAMES - 1)
MIN_SECONDS = 1.0
"""Minimum duration of a measurement; shorter work is repeated, and the mean is taken."""
Measure = Callable[[], dict[str, Any]]


def spectrograms(batch: int) -> np.ndarray:
    """Returns patchy noise, of the kind on which the batch statistics of the shared weights were measured."""
    rng = np.random.default_rng(0)
    patches = np.kron(rng.standard_normal((batch, FRAMES // 16, 8)), np.ones((1, 16, 16)))
    return (patches + 0.5 * rng.standard_normal((batch, FRAMES, 128))).astype(np.float32)


def waveforms(batch: int, samples: int = SECONDS * RATE) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((batch, samples), np.float32) * np.float32(0.1)


def labels(batch: int) -> np.ndarray:
    return (np.random.default_rng(2).random((batch, CLASSES)) < 0.005).astype(np.float32)


def timed(
    work: Callable[[], Any],
    check: np.ndarray | None = None,
    clock: Callable[[], float] = time.perf_counter,
    warm: bool = True,
) -> dict:
    """Returns the mean duration of a call over at least :data:`MIN_SECONDS`.

    Args:
        work: the function to measure.
        check: values on which all implementations must agree, included in the result.
        clock: returns the time in seconds.
        warm: make an uncounted call first, as in a running loop. While the other implementations had their turn, caches
            went cold, and a virtual machine may have released memory that it must request again.
    """
    if warm:
        work()
    start, calls, total = clock(), 0, 0.0
    while total < MIN_SECONDS:
        work()
        calls, total = calls + 1, clock() - start
    result: dict[str, Any] = {"value": total / calls}
    return result if check is None else result | {"check": np.asarray(check, np.float64).ravel().tolist()}


# ---- preparation: weights, recordings, a model directory


def prepare(folder: Path) -> None:
    """Writes the shared weights, recordings and model directory, and prints the name of the device."""
    import jax
    import jax.numpy as jnp
    import soundfile
    from torch_reference import make_reference, to_numpy

    from psla_jax.config import FrontendConfig, ModelConfig
    from psla_jax.data import datafile
    from psla_jax.models.factory import from_config
    from psla_jax.models.initializers import AbstractRngs
    from psla_jax.models.model_dir import ModelCard, save_model
    from psla_jax.models.state import split_model
    from psla_jax.pretraining.state_dict import load_state_dict
    from psla_jax.vocabulary.vocabulary import Vocabulary

    config = ModelConfig()
    model = from_config(config, CLASSES, jnp.float32, AbstractRngs())
    # With initial weights, activations vanish over the depth, and the scores would not depend on most layers.
    weights = to_numpy(make_reference(2, CLASSES, HEADS).state_dict())
    load_state_dict(model, weights)
    np.savez(folder / "weights.npz", **weights)
    vocabulary = Vocabulary.read("audioset")
    save_model(folder / "model", ModelCard(config, FrontendConfig(), vocabulary, {}), *split_model(model))
    records = []
    for clip in range(64):
        path = folder / f"{clip}.wav"
        soundfile.write(path, waveforms(1)[0] * (1 + clip) / 64, RATE, subtype="PCM_16")
        records.append((str(path), [vocabulary.mids[clip]]))
    datafile.write(folder / "train.json", records)
    print(f"{jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores")


# ---- networks


def jax_model(precision: Precision) -> Any:
    from flax import nnx

    from psla_jax.config import ModelConfig
    from psla_jax.models.factory import from_config
    from psla_jax.models.precision import activations

    return from_config(ModelConfig(drop_connect=0.0), CLASSES, activations(precision), nnx.Rngs(0))


def torch_model(folder: Path, tuned: bool, precision: str) -> tuple[Any, str]:
    """Returns the official architecture with the shared weights, and its device."""
    import torch
    from torch_reference import ReferenceTagger

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "highest"
    model = ReferenceTagger(2, CLASSES, HEADS, drop_connect=0.0)
    with np.load(folder / "weights.npz") as weights:
        model.load_state_dict({name: torch.from_numpy(weights[name].copy()) for name in weights.files}, strict=False)
    model = model.to(device)
    return (model.to(memory_format=torch.channels_last) if tuned else model), device


def inference(rival: str, folder: Path, precision: Precision, batch: int) -> Measure:
    x = spectrograms(batch)
    if rival == "ours":
        return _jax_inference(folder, precision, x)
    if rival in ("onnxruntime", "openvino"):
        return _exported_inference(rival, folder, precision, x)
    import torch

    model, device = torch_model(folder, rival == "tuned", precision)
    model.eval()
    spectrograms_on_device = torch.from_numpy(x).to(device)
    run = torch.compile(model) if rival == "tuned" else model

    def work() -> Any:
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            return run(spectrograms_on_device).float().cpu().numpy()

    check = work()
    return lambda: timed(work, check)


def _jax_inference(folder: Path, precision: Precision, x: np.ndarray) -> Measure:
    import jax
    from flax import nnx

    from psla_jax.models.precision import products
    from psla_jax.models.state import split_model
    from psla_jax.pretraining.state_dict import load_state_dict
    from psla_jax.runtime.cores import SideBySide
    from psla_jax.runtime.xla_options import inference_options

    platform = jax.default_backend()
    model = jax_model(precision)
    with np.load(folder / "weights.npz") as weights:
        load_state_dict(model, dict(weights))
    graphdef, weights = nnx.graphdef(model), split_model(model)

    def scores(weights: Any, batch: dict[str, Any]) -> Any:
        return nnx.merge(graphdef, *weights)(batch["x"]).astype("float32")

    def compiled(batch: dict[str, Any]) -> Callable[[dict[str, Any]], Any]:
        with products(precision):
            lowered = jax.jit(scores, compiler_options=inference_options(platform)).lower(weights, batch)
        return functools.partial(lowered.compile(), weights)

    # As psla evaluate computes: by groups of clips at the same time on a CPU.
    batch = {"x": x if platform == "cpu" else jax.device_put(x)}
    run = SideBySide(compiled) if platform == "cpu" else compiled(batch)

    def work() -> np.ndarray:
        return np.asarray(run(batch)() if platform == "cpu" else run(batch))

    check = work()
    return lambda: timed(work, check)


def _exported_inference(rival: str, folder: Path, precision: Precision, x: np.ndarray) -> Measure:
    """Measures the official architecture in onnxruntime or OpenVINO on a CPU, from an ONNX file that PyTorch writes."""
    import warnings

    import torch

    model, _ = torch_model(folder, tuned=False, precision=precision)
    path = str(folder / f"{rival}_{len(x)}.onnx")
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The exporter without TorchScript needs another package.
        torch.onnx.export(model.cpu().eval(), (torch.from_numpy(x),), path, dynamo=False, input_names=["x"])
    if rival == "onnxruntime":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        run = functools.partial(session.run, None, {"x": x})
    else:
        import openvino

        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32"}
        request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()
        run = functools.partial(request.infer, {"x": x})
    check = run()[0]
    return lambda: timed(run, check)


def train_step(rival: str, folder: Path, precision: Precision) -> Measure:
    return _jax_training(precision) if rival == "ours" else _torch_training(folder, rival == "tuned", precision)


def _jax_training(precision: Precision) -> Measure:
    import dataclasses

    import jax

    from psla_jax.config import DataConfig, OptimizerConfig, RunConfig, SamplingConfig
    from psla_jax.runtime.sharding import Placement
    from psla_jax.training.trainer import make_trainer

    class IdentityFrontend:
        """Passes spectrograms through, as the frontend is a part of its own."""

        def log_mel(self, x: Any, _: Any) -> Any:
            return x

        def normalise(self, x: Any) -> Any:
            return x

    config = RunConfig(
        data=DataConfig(batch_size=8),
        sampling=SamplingConfig(mixup=0, freq_mask=0, time_mask=0),
        optimizer=OptimizerConfig(precision=precision),
    )
    model = jax_model(precision)
    trainer = make_trainer(config, model, 1000, Placement.over(jax.devices()[:1]))
    trainer = dataclasses.replace(trainer, frontend=IdentityFrontend())  # type: ignore[arg-type]
    batch = {"waveform": spectrograms(8), "num_samples": np.full(8, SAMPLES, np.int32), "labels": labels(8)}
    placed = trainer.placement.shard_batch(batch | {"valid": np.ones(8, np.float32)})
    state = trainer.init(model)
    step = 0

    def work() -> None:
        nonlocal state, step
        state, metrics = trainer.step(state, placed, np.int32(step))
        metrics["loss"].block_until_ready()
        step += 1

    work()
    return lambda: timed(work)


def _torch_training(folder: Path, tuned: bool, precision: str) -> Measure:
    import torch

    model, device = torch_model(folder, tuned, precision)
    model.train()
    adam = torch.optim.Adam(model.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=5e-7, fused=tuned or None)
    x, y = torch.from_numpy(spectrograms(8)).to(device), torch.from_numpy(labels(8)).to(device)

    def work() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            scores = model(x)
        loss = torch.nn.functional.binary_cross_entropy(scores.float().clamp(1e-7, 1 - 1e-7), y)
        adam.zero_grad()
        loss.backward()
        adam.step()
        loss.item()

    work()
    return lambda: timed(work)


def train_step_memory(rival: str, folder: Path, precision: Precision) -> Measure:
    """Measures the peak memory of this process after a few steps; on a GPU, that of the device."""
    step = train_step(rival, folder, precision)

    def measure() -> dict[str, Any]:
        step()
        return {"value": _peak_memory(rival)}

    return measure


def _peak_memory(rival: str) -> int:
    if rival == "ours":
        import jax

        stats = jax.devices()[0].memory_stats()
        if stats:
            return stats["peak_bytes_in_use"]
    else:
        import torch

        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# ---- features and input


def kaldi_fbank(waveform: np.ndarray) -> Any:
    """Returns Kaldi's log-mel features of one clip, by the operations of torchaudio's ``compliance.kaldi.fbank``."""
    import torch

    x = torch.from_numpy(waveform)
    frames = x.unfold(0, 400, 160)
    frames = frames - frames.mean(dim=1, keepdim=True)
    previous = torch.nn.functional.pad(frames[None], (1, 0), mode="replicate")[0][:, :-1]
    frames = (frames - 0.97 * previous) * torch.hann_window(400, periodic=False)
    power = torch.fft.rfft(torch.nn.functional.pad(frames, (0, 112))).abs().pow(2.0)
    return torch.mm(power[:, :256], _mel_banks()).clamp(min=1.1920929e-07).log()


def _mel_banks() -> Any:
    """Returns the mel filters; like torchaudio, computes them anew for every clip."""
    import torch

    low, high = (1127.0 * np.log(1.0 + hertz / 700.0) for hertz in (20.0, 8000.0))
    mel = 1127.0 * torch.log(1.0 + 31.25 * torch.arange(256) / 700.0)
    edges = low + torch.arange(130)[:, None] * (high - low) / 129
    rising, falling = (mel - edges[:-2]) / (high - low) * 129, (edges[2:] - mel) / (high - low) * 129
    return torch.minimum(rising, falling).clamp(min=0).T.contiguous()


def frontend(rival: str, folder: Path, precision: str) -> Measure:
    clips = waveforms(8)
    if rival != "ours":
        return lambda: timed(lambda: [kaldi_fbank(clip) for clip in clips])
    import jax

    from psla_jax.audio.frontend import Frontend

    lengths = np.full(8, clips.shape[1], np.int32)
    run = jax.jit(lambda x: Frontend(FRAMES).log_mel(x, lengths))
    clips_on_device = jax.device_put(clips)
    ours = np.asarray(run(clips_on_device))[0, :998]
    difference = np.abs(ours - kaldi_fbank(clips[0]).numpy()).max()
    if difference > 1e-2:
        raise SystemExit(f"the features of the implementations differ by {difference:.1e}")
    return lambda: timed(lambda: run(clips_on_device).block_until_ready())


def host_per_clip(rival: str, folder: Path, precision: str) -> Measure:
    """Measures the CPU time per clip of reading and mixup of half of the clips; in the reference, also of features."""
    from psla_jax.config import DataConfig, SamplingConfig
    from psla_jax.data.datafile import Datafile
    from psla_jax.data.train_source import train_source
    from psla_jax.vocabulary.vocabulary import Vocabulary

    if rival != "ours":
        return lambda: _per_clip(lambda: [_reference_item(folder, clip) for clip in range(64)])
    data = Datafile.read(folder / "train.json", Vocabulary.read("audioset"))
    source = train_source(data, DataConfig(batch_size=64), SamplingConfig(), num_samples=SAMPLES, epochs=100, seed=0)
    return lambda: _per_clip(lambda: [source[item] for item in range(64)])


def _per_clip(work: Callable[[], Any]) -> dict[str, Any]:
    result = timed(work, clock=time.process_time)
    return result | {"value": result["value"] / 64}


def _reference_item(folder: Path, clip: int) -> Any:
    """Reads a clip, mixes every second one with another, and computes features, like the reference's data set."""
    import soundfile
    import torch

    torch.set_num_threads(1)
    rng = np.random.default_rng(clip)
    waveform = soundfile.read(folder / f"{clip}.wav", dtype="float32")[0]
    waveform = waveform - waveform.mean()
    target = np.zeros(CLASSES, np.float32)
    target[clip] = 1.0
    if clip % 2:
        other = soundfile.read(folder / f"{rng.integers(64)}.wav", dtype="float32")[0]
        share = rng.beta(10, 10)
        waveform = np.float32(share) * waveform + np.float32(1 - share) * (other - other.mean())
        waveform = waveform - waveform.mean()
    features = torch.nn.functional.pad(kaldi_fbank(waveform), (0, 0, 0, FRAMES - 998))
    return (features + 4.6476) / 4.5699, target


# ---- the end of an epoch, and the first tag


def epoch_end(rival: str, folder: Path, precision: str) -> Measure:
    """Measures the metrics of 20,000 clips and of the running ensemble, and the storage of the scores."""
    rng = np.random.default_rng(3)
    scores = rng.random((20_000, CLASSES), np.float32)
    truth = (rng.random((20_000, CLASSES)) < 0.005).astype(np.float32)
    return lambda: timed(
        lambda: (_our_epoch_end if rival == "ours" else _reference_epoch_end)(scores, truth, folder), warm=False
    )


def _our_epoch_end(scores: np.ndarray, truth: np.ndarray, folder: Path) -> None:
    from psla_jax.aggregation.average import RunningEnsemble
    from psla_jax.evaluation.predict import Scores

    epoch = Scores(np.array([f"{i}.wav" for i in range(len(scores))]), scores, truth)
    epoch.save(folder / "scores.npz")
    epoch.metrics()
    running = RunningEnsemble()
    running.add(epoch)
    running.add(epoch)
    running.mean().metrics()


def _reference_epoch_end(scores: np.ndarray, truth: np.ndarray, folder: Path) -> None:
    """Computes the metrics of scores and ensemble class by class with scikit-learn, and stores both as CSV."""
    from sklearn import metrics

    def loop(values: np.ndarray) -> None:
        for k in range(CLASSES):
            metrics.average_precision_score(truth[:, k], values[:, k])
            metrics.roc_auc_score(truth[:, k], values[:, k])
            metrics.precision_recall_curve(truth[:, k], values[:, k])
            metrics.roc_curve(truth[:, k], values[:, k])

    loop(scores)
    np.savetxt(folder / "predictions.csv", scores, delimiter=",")
    previous = np.loadtxt(folder / "predictions.csv", delimiter=",")
    ensemble = (previous + scores) / 2
    np.savetxt(folder / "ensemble.csv", ensemble, delimiter=",")
    loop(ensemble)


def first_tag(rival: str, folder: Path, precision: str) -> Measure:
    """Measures a psla tag process from start to end, with a compilation cache of its own."""
    environment = os.environ | {"PSLA_CACHE": str(folder / "cache")}
    command = [
        sys.executable,
        "-m",
        "psla_jax.cli.main",
        "tag",
        str(folder / "0.wav"),
        "--model",
        str(folder / "model"),
    ]

    def work() -> None:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)

    work()
    return lambda: timed(work, warm=False)


def main() -> None:
    rival, part, directory, precision = sys.argv[1:]
    folder = Path(directory)
    if rival == "prepare":
        return prepare(folder)
    makers: dict[str, Callable[[str, Path, Any], Measure]] = {
        "inference_b1": functools.partial(inference, batch=1),
        "inference_b8": functools.partial(inference, batch=8),
        "train_step_b8": train_step,
        "train_step_memory": train_step_memory,
        "frontend": frontend,
        "host_per_clip": host_per_clip,
        "epoch_end": epoch_end,
        "first_tag": first_tag,
    }
    answers, sys.stdout = sys.stdout, sys.stderr  # Keeps output of libraries out of the results.
    measure = makers[part](rival, folder, precision)
    for _ in sys.stdin:
        print(json.dumps(measure()), file=answers, flush=True)
    return None


if __name__ == "__main__":
    main()
