"""Networks as ONNX models, by torch's exporter: for batches of any size, without notes of where they were written."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def to_onnx(
    model: nn.Module, examples: Tensor, *, inputs: str, outputs: Sequence[str], opset: int | None = None
) -> Any:
    """The model as an ONNX protobuf; `ValueError` for one that cannot be written. It takes what `examples` (N, ...) are
    made of."""
    example = examples[:2] if len(examples) > 1 else examples.expand(2, *examples.shape[1:])
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # torch.onnx announces deprecations of its own parts
            program = torch.onnx.export(
                model,
                (example.contiguous(),),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                input_names=[inputs],
                output_names=list(outputs),
                opset_version=opset,
                verbose=False,
            )
    except Exception as error:  # whatever a user's network holds that has no ONNX
        raise ValueError(f"the model cannot be written as ONNX: {_cause(error)}") from error
    assert program is not None
    protobuf = program.model_proto
    if not protobuf.graph.input[0].type.tensor_type.shape.dim[0].dim_param:
        raise ValueError(
            "the model cannot be written as ONNX for batches of any size: its code makes a constant of the batch, as"
            " `len(inputs)` does; write `inputs.shape[0]`"
        )
    _strip(protobuf.graph)
    return protobuf


def _cause(error: BaseException) -> str:
    """The innermost reason: the exporter wraps it in advice on how to report it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def _strip(graph: Any) -> None:
    """Take out what the exporter notes of Python: lines of code, with the paths of this machine."""
    for part in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer, graph):
        del part.metadata_props[:]
        part.doc_string = ""
