"""A network of a file that holds a program: of `torch.export` (`.pt2`) or ONNX (`.onnx`)."""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from raydistill.models.exported import Exported
from raydistill.models.onnx_program import read_onnx
from raydistill.models.options import ExportedOptions
from raydistill.models.torch_program import read_program
from raydistill.models.weight_files import why_no_weights


def open_program(path: Path) -> Exported:
    """The program of a file. `ValueError` names the file, what is wrong with it, and the way out."""
    if problem := why_no_weights(path):
        raise ValueError(problem)
    return read_onnx(path) if path.suffix == ".onnx" else read_program(path)


def build_exported(options: ExportedOptions, input_shape: Sequence[int], num_classes: int) -> nn.Module:
    """`ValueError`: without its file there is nothing to build."""
    raise ValueError("model `exported` is a program in a file: name it as `weights`, in `stage: pretrained`")
