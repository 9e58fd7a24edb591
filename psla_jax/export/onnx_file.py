"""Models as ONNX files, which are compared with the model in onnxruntime before they are written.

The module needs the packages onnx and onnxruntime.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from psla_jax.config import frontend_settings
from psla_jax.export import onnx_graph
from psla_jax.export.onnx_graph import Graph
from psla_jax.models.exclusive import normalise
from psla_jax.models.model_dir import Model, find_model, load_model, read_card
from psla_jax.models.protocols import parts
from psla_jax.models.self_test import self_test_scores, self_test_spectrogram, self_test_waveform
from psla_jax.pretraining.convert import require_official, require_writable
from psla_jax.pretraining.state_dict import PretrainingError
from psla_jax.runtime.files import atomic_path

TOLERANCE = 1e-5
"""Largest allowed difference of a score from the model's own."""
Input = Literal["waveform", "log-mel"]


def export(model: str, destination: str, source: Input = "waveform", *, overwrite: bool = False) -> list[str]:
    """Writes a model as an ONNX file (:func:`write`); returns a report as lines for the screen.

    Args:
        model: a model directory or run directory.
        destination: the ``.onnx`` file to write.
        source: the input of the graph.
        overwrite: whether to replace an existing file.

    Raises:
        PretrainingError, CheckpointError: the model cannot be exported, or the file exists or cannot be written.
    """
    path = Path(destination)
    require_writable(path, overwrite=overwrite)
    require_official(model, read_card(find_model(Path(model))).model)
    loaded = load_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        written = write(loaded, path, source)
    except OSError as error:
        raise PretrainingError(f"{path} cannot be written ({error.strerror}): choose another path.") from error
    card = loaded.card
    unit = f"at {card.frontend.sample_rate} Hz" if source == "waveform" else "normalised"
    return [
        f"{model} -> {path}: {card.model.name}, {written.size / 1e6:.1f} MB, opset {onnx_graph.OPSET}",
        f"input     {source}, {unit}; any number of clips of any length",
        f"outputs   {', '.join(written.outputs)}; classes, frontend and licence in the metadata",
        f"verified  scores of the test sound in onnxruntime {onnxruntime.__version__} differ by at most "
        f"{written.difference:.1e}",
    ]


class Exported(NamedTuple):
    """A written file: its outputs, its size in bytes, and the largest difference of a score from the model's."""

    outputs: tuple[str, ...]
    size: int
    difference: float


def write(model: Model, path: Path, source: Input = "waveform") -> Exported:
    """Writes a model with built-in backbone and head as an ONNX file, atomically.

    Its input is ``waveform (batch, samples)`` at the model's sample rate, in [-1, 1], or ``log_mel (batch, frames,
    mels)``, normalised as by :class:`psla_jax.audio.frontend.Frontend`. Clips that are shorter than the input of the
    model are padded as in ``psla evaluate``; longer ones are scored as a whole. Its outputs are ``scores (batch,
    classes)``; ``embeddings (batch, output frames, channels)``; and where the head has them, ``frame_scores`` and
    ``attention (batch, output frames, classes)``, as :class:`psla_jax.models.pooling.FrameOutputs`. The metadata has
    the classes, the sample rate, the frontend, the licence, and the card of the model.

    Raises:
        PretrainingError: the scores of the test sound in onnxruntime differ by more than :data:`TOLERANCE`.
        OSError: the file cannot be written.
    """
    proto = build(model, source)
    content = proto.SerializeToString()
    frontend = model.card.frontend
    if source == "waveform":
        # Cut to the input of the model, as its own scores of the test sound are; the graph scores clips as a whole.
        test = {"waveform": self_test_waveform(frontend.sample_rate)[None, : model.frontend.num_samples]}
    else:
        test = {"log_mel": self_test_spectrogram(frontend)}
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    scores = session.run(["scores"], test)[0][0]
    expected = self_test_scores(model.network, frontend)
    if model.card.exclusive:
        expected = np.asarray(normalise(jnp.asarray(expected)))
    difference = float(np.abs(scores - expected).max())
    if not difference <= TOLERANCE:
        raise PretrainingError(
            f"the scores of the test sound in onnxruntime {onnxruntime.__version__} differ by {difference:.1e}, so "
            f"{path} was not written: please report this with the name of the model."
        )
    with atomic_path(path) as temporary:
        Path(temporary).write_bytes(content)
    return Exported(tuple(output.name for output in proto.graph.output), len(content), difference)


def build(model: Model, source: Input = "waveform") -> onnx.ModelProto:
    """Returns a model as an ONNX graph, see :func:`write`."""
    card, found = model.card, parts(model.network)
    assert found is not None, "built-in models have a backbone and a head"
    graph, frontend = Graph(), card.frontend
    if source == "waveform":
        given = helper.make_tensor_value_info("waveform", TensorProto.FLOAT, ["batch", "samples"])
        spectrograms = onnx_graph.log_mel(graph, given.name, frontend)
    else:
        given = helper.make_tensor_value_info("log_mel", TensorProto.FLOAT, ["batch", "frames", frontend.num_mels])
        spectrograms = given.name
    features = onnx_graph.features(graph, spectrograms, card.model.name, found.backbone)
    values = onnx_graph.head_outputs(graph, features, card.model.pooling, found.head) | {"embeddings": features}
    if card.exclusive:
        values = {
            name: onnx_graph.exclusive(graph, value) if name in ("scores", "frame_scores") else value
            for name, value in values.items()
        }
    classes = len(card.vocabulary)
    shapes: dict[str, list[Any]] = {"scores": ["batch", classes]}
    shapes["embeddings"] = ["batch", "output_frames", found.backbone.num_features]
    outputs = [
        helper.make_tensor_value_info(
            graph.name(value, name), TensorProto.FLOAT, shapes.get(name, ["batch", "output_frames", classes])
        )
        for name, value in values.items()
    ]
    body = helper.make_graph(graph.nodes, "psla_jax", [given], outputs, graph.constants)
    opset = helper.make_opsetid("", onnx_graph.OPSET)
    proto = helper.make_model(body, opset_imports=[opset], ir_version=onnx_graph.IR_VERSION, producer_name="psla_jax")
    helper.set_model_props(proto, _metadata(model))
    onnx.checker.check_model(proto, full_check=True)
    return proto


def _metadata(model: Model) -> dict[str, str]:
    card = model.card
    return {
        "classes": json.dumps(list(zip(card.vocabulary.mids, card.vocabulary.names)), ensure_ascii=False),
        "sample_rate": str(card.frontend.sample_rate),
        "frontend": json.dumps(frontend_settings(card.frontend)),
        "licence": card.licence,
        "psla_jax": card.to_json(),
    }
