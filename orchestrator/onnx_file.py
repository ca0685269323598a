"""A model as an ONNX file: raw inputs in, probabilities and the class's name out; compared with torch before it stands.

What it takes and gives is among the file's properties, for readers of any language and for our own
`{name: exported}`: `contract` as JSON, and `task`, `class_names`, `fingerprint`, `license` by themselves.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raydistill.errors import PlanError, StoreError
from raydistill.lookup import missing_onnx_writer
from raydistill.models.onnx_export import to_onnx
from raydistill.prediction import Predictor
from raydistill.runs.files import atomic_write
from raydistill.runs.record import summary_of

LARGEST_DIFFERENCE = 1e-4  # of a probability; float32 sums in another order part by some 1e-7
TOGETHER = 100  # samples that are compared at once
INPUTS, PROBABILITIES, LABELS, INDICES, NAMES = (
    "inputs",
    "probabilities",
    "label",
    "label_index",
    "class_names",
)


class Answering(nn.Module):
    """A model, or several as one, from raw inputs (B, ...), bytes or as the task delivers them, to probabilities (B, C)
    float32."""

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.predictor = predictor
        # Its modules, so that torch knows of their weights.
        self.models = nn.ModuleList(
            part for member in predictor.members for part in (member.normalisation, member.model)
        )
        self.eval()

    def forward(self, inputs: Tensor) -> Tensor:
        raw = inputs.float() / 255 if inputs.dtype == torch.uint8 else inputs
        return torch.softmax(self.predictor.logits(raw).float(), dim=1)


def check_libraries() -> None:
    """`PlanError` says what to install."""
    if (missing := missing_onnx_writer()) is not None:
        raise PlanError(missing)


def write_onnx(
    predictor: Predictor,
    samples: Tensor,
    path: Path,
    *,
    properties: Mapping[str, str],
    class_names: Sequence[str],
    opset: int | None = None,
) -> float:
    """Write the file; returns the largest difference of a probability from torch's on `samples` (N, ...).

    The file takes inputs of the samples' type, in batches of any size. `PlanError` for what cannot be written,
    `StoreError` where it answers otherwise than torch: then nothing is left behind.
    """
    check_libraries()
    if predictor.is_committee:
        raise PlanError(
            "a committee cannot be written as ONNX: which specialists answer is decided picture by picture, and their"
            " fusion is solved by iteration; export its student, or one of its models"
        )
    import onnx

    model = _converted(predictor, samples, opset)
    _add_labels(model, class_names)
    onnx.helper.set_model_props(model, dict(properties))
    with atomic_write(path) as temporary:
        try:
            onnx.checker.check_model(model, full_check=True)
            onnx.save_model(model, str(temporary))
        except Exception as error:  # whatever protobuf raises above 2 GiB, or the checker
            raise StoreError(f"the ONNX model is not valid: {summary_of(error)}") from error
        return compare(temporary, Answering(predictor), samples)


def _converted(predictor: Predictor, samples: Tensor, opset: int | None) -> Any:
    """The model as an ONNX protobuf, without labels."""
    try:
        return to_onnx(Answering(predictor), samples, inputs=INPUTS, outputs=[PROBABILITIES], opset=opset)
    except ValueError as error:
        raise PlanError(str(error)) from error


def _add_labels(model: Any, class_names: Sequence[str]) -> None:
    """A second output: the name of the most probable class, (B,)."""
    from onnx import TensorProto, helper

    graph = model.graph
    names = np.array([name.encode("utf-8", "surrogateescape") for name in class_names], dtype=object)
    graph.initializer.append(helper.make_tensor(NAMES, TensorProto.STRING, names.shape, names))
    graph.node.extend(
        [
            helper.make_node("ArgMax", [PROBABILITIES], [INDICES], axis=1, keepdims=0),
            helper.make_node("Gather", [NAMES, INDICES], [LABELS]),
        ]
    )
    graph.output.append(helper.make_tensor_value_info(LABELS, TensorProto.STRING, ["batch"]))


@torch.no_grad()
def compare(path: Path, module: nn.Module, samples: Tensor) -> float:
    """The largest difference between the probabilities of a file and of a module; `StoreError` above what rounding
    explains."""
    import onnxruntime  # type: ignore[import-untyped,import-not-found,unused-ignore]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    largest = 0.0
    try:
        session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
        for part in (samples[:1], *samples[1:].split(TOGETHER)):
            if len(part):
                (given,) = session.run([PROBABILITIES], {INPUTS: part.numpy()})
                apart = np.abs(given - module(part).numpy()).max()
                largest = max(largest, float(apart) if np.isfinite(apart) else np.inf)
    except Exception as error:  # whatever the runtime raises
        raise StoreError(f"onnxruntime cannot run the model: {summary_of(error)}") from error
    if largest > LARGEST_DIFFERENCE:
        raise StoreError(
            f"the ONNX model is not written: its probabilities are up to {largest:.2g} from torch's on"
            f" {len(samples)} samples; another `--opset` may help"
        )
    return largest
