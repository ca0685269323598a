"""ONNX models, run by onnxruntime."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raydistill.models.exported import Exported
from raydistill.models.weight_files import normalises_inside

CONTRACT = "contract"
"""The key among a file's properties of what it takes and gives, as JSON."""
BYTES, TEXTS = "tensor(uint8)", "tensor(string)"
DTYPES = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(double)": torch.float64,
    "tensor(int64)": torch.int64,
    "tensor(int32)": torch.int32,
}


def read_onnx(path: Path) -> Exported:
    """The model of a file, with the tensors that lie beside it."""
    session = _open(path, "cpu")
    inputs = session.get_inputs()
    if len(inputs) != 1:
        several = ", ".join(f"`{item.name}`" for item in inputs)
        raise ValueError(f"`{path}` has the inputs {several}; a teacher has one: export it so")
    takes_raw = normalises_inside(session.get_modelmeta().custom_metadata_map.get(CONTRACT))
    if inputs[0].type not in DTYPES and not (takes_raw and inputs[0].type == BYTES):
        raise ValueError(
            f"`{path}` takes `{inputs[0].type}`; export it for float32, or int64 where inputs are tokens"
        )
    sizes = [size if isinstance(size, int) else None for size in inputs[0].shape]
    names = [item.name for item in session.get_outputs() if item.type != TEXTS]
    program = OnnxProgram(path, inputs[0].name, names, sizes, DTYPES.get(inputs[0].type, torch.uint8))
    program.takes_raw = takes_raw
    return program


class OnnxProgram(Exported):
    """An ONNX model. Each process opens it for itself, on the first inputs, with the threads that torch has there."""

    def __init__(
        self,
        path: Path,
        input_name: str,
        names: Sequence[str],
        sizes: Sequence[int | None],
        dtype: torch.dtype,
    ) -> None:
        super().__init__(names, sizes[1:] if sizes else None, sizes[0] if sizes else None, dtype)
        self.path, self.input_name, self.sizes = path, input_name, tuple(sizes)
        self._session: Any = None
        self._device = ""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_session": None}

    def forward(self, inputs: Tensor) -> Tensor | dict[str, Tensor]:
        """Outputs (B, …) for inputs (B, …); a model that knows no batch gets them one by one."""
        if self.sizes and len(self.sizes) == inputs.dim() - 1:
            self.sample_shape, self.rows = self.sizes, 0
        return super().forward(inputs)

    @torch.compiler.disable
    def run(self, inputs: Tensor) -> Sequence[Tensor]:
        """Its outputs, on the inputs' device."""
        if inputs.requires_grad:
            raise ValueError(
                f"`{self.path.name}` gives no gradients of its inputs, as an ONNX model; take the network or its `.pt2`"
            )
        if self._session is None or self._device != inputs.device.type:
            self._session, self._device = _open(self.path, inputs.device.type), inputs.device.type
        try:
            found = self._session.run(list(self.names), {self.input_name: inputs.cpu().numpy()})
        except Exception as error:  # whatever the runtime raises
            raise ValueError(f"`{self.path.name}` cannot be run: {_said(error)}") from error
        return [torch.from_numpy(output).to(inputs.device) for output in found]


def _open(path: Path, device: str) -> Any:
    try:
        import onnxruntime  # type: ignore[import-untyped,import-not-found,unused-ignore]
    except ImportError:
        raise ValueError(
            f"`{path}` is run by onnxruntime; install it: `pip install 'raydistill[onnx]'`"
        ) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    available = onnxruntime.get_available_providers()
    own = f"{device.upper()}ExecutionProvider"
    wanted = [own] if device != "cpu" and own in available else []
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=[*wanted, "CPUExecutionProvider"])
    except Exception as error:  # whatever the bytes of a foreign file lead to
        raise ValueError(f"`{path}` cannot be read as an ONNX model: {_said(error)}") from error


def _said(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text.rpartition("] : ")[2][:300]
