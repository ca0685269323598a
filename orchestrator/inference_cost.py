"""What a model costs whoever uses it: parameters, multiply-adds, bytes, and on this machine memory and time."""

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from raydistill import timing
from raydistill.errors import DistillError, PlanError, StageError
from raydistill.models.multiply_adds import count_multiply_adds
from raydistill.onnx_file import Answering, write_onnx
from raydistill.prediction import Predictor, load_predictor
from raydistill.runs.run_files import GRAPH
from raydistill.runs.view import open_run
from raydistill.timing import peak_bytes, time_runs
from raydistill.training.model_files import TrainedModel
from raydistill.training.trust import NOBODY, Trust

BATCHES = (1, 32)
TIMEOUT = 600.0  # seconds for a process that measures


@dataclass(frozen=True)
class Latency:
    """Seconds for a batch, that half (`p50`) and 95 % (`p95`) of the `runs` stay below, with so many threads."""

    runtime: Literal["torch", "onnxruntime"]
    batch: int
    threads: int
    p50: float
    p95: float
    runs: int


@dataclass(frozen=True)
class InferenceCost:
    """The cost of one model, or of several as one. `multiply_adds` are for one input, `peak_bytes` by runtime those of
    the whole process; `remarks` say what could not be measured."""

    name: str
    parameters: int | None
    multiply_adds: int | None
    bytes: int
    machine: str = ""
    latencies: tuple[Latency, ...] = ()
    peak_bytes: Mapping[str, int] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def measure_costs(folder: Path, trust: Trust = NOBODY, *, runs: Path | None = None) -> list[InferenceCost]:
    """The cost of the model in a stage's folder or an exported one, or of all models of a run below the storage `runs`.

    One model after the other runs, first on one processor, then on all: whatever else runs there is in the numbers.
    """
    if not (folder / GRAPH).is_file():
        return [measure_cost(folder, trust, folder.absolute().name)]
    view = open_run(folder.absolute(), (runs or folder.absolute().parents[2]).absolute())
    stages = [stage for stage in view.stages.values() if stage.makes_model and stage.has_result]
    if not stages:
        raise PlanError(f"the run `{folder}` has no finished model")
    return [measure_cost(stage.folder.path, trust, stage.name) for stage in stages]


def measure_cost(folder: Path, trust: Trust, name: str) -> InferenceCost:
    """The cost of a model on this machine's processor: batches of 1 and 32, with one thread and with all."""
    predictor = load_predictor(folder, trust)
    threads = sorted({1, torch.get_num_threads()})
    settings = [[batch, count] for batch in BATCHES for count in threads]
    answer = _run_torch(folder, trust, settings)
    latencies, peaks, remarks = _latencies("torch", settings, answer), {"torch": answer["peak_bytes"]}, []
    try:
        answer = _time_onnx(predictor, settings)
        latencies += _latencies("onnxruntime", settings, answer)
        peaks["onnxruntime"] = answer["peak_bytes"]
    except DistillError as error:
        remarks.append(f"not with onnxruntime: {error}")
    return replace(
        count_cost(predictor, name),
        machine=f"{platform.machine()}, {os.cpu_count()} processors",
        latencies=tuple(latencies),
        peak_bytes={runtime: peak for runtime, peak in peaks.items() if peak is not None},
        remarks=tuple(remarks),
    )


def measure_latency(folder: Path, trust: Trust) -> float:
    """Seconds that half of the answers for one input stay below, by torch with one thread on this machine."""
    return float(_run_torch(folder, trust, [[1, 1]])["runs"][0]["p50"])


def _run_torch(folder: Path, trust: Trust, settings: Sequence[Sequence[int]]) -> dict[str, Any]:
    request = {
        "folder": str(folder.absolute()),
        "root": None if trust.root is None else str(trust.root),
        "modules": trust.modules,
        "settings": settings,
        "seconds": timing.SECONDS,
    }
    return _in_process("raydistill.inference_cost", request)


def count_cost(predictor: Predictor, name: str) -> InferenceCost:
    """What is the same on every machine: nothing is measured."""
    return InferenceCost(
        name=name,
        parameters=sum(p.numel() for member in predictor.members for p in member.model.parameters()) or None,
        multiply_adds=_multiply_adds(predictor),
        bytes=sum(_bytes(member) for member in predictor.members),
    )


def _multiply_adds(predictor: Predictor) -> int | None:
    """Of all models together; not of a committee, of which only those answer that are called for."""
    if predictor.is_committee:
        return None
    counts = [
        count_multiply_adds(member.model, member.prepared(_inputs(member, 1))) for member in predictor.members
    ]
    return sum(filter(None, counts)) if all(counts) else None


def _bytes(model: TrainedModel) -> int:
    """Of the tensors, which a file of weights holds and little else."""
    return sum(tensor.numel() * tensor.element_size() for tensor in model.model.state_dict().values())


def _inputs(model: TrainedModel, batch: int) -> torch.Tensor:
    return torch.zeros(batch, *model.input_shape, dtype=model.input_dtype)


@torch.inference_mode()
def time_torch(
    folder: str, root: str | None, modules: list[str], settings: list[list[int]], seconds: float
) -> dict[str, Any]:
    """`runs`, a result for each setting of [batch, threads], and `peak_bytes` of this process, which has nothing else
    to do."""
    predictor = load_predictor(Path(folder), Trust(None if root is None else Path(root), tuple(modules)))
    module, results = Answering(predictor), []
    for batch, threads in settings:
        torch.set_num_threads(threads)
        results.append(time_runs(partial(module, _inputs(predictor.first, batch)), seconds))
    return {"runs": results, "peak_bytes": peak_bytes()}


def _time_onnx(predictor: Predictor, settings: Sequence[Sequence[int]]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="raydistill-") as folder:
        file, inputs = Path(folder) / "model.onnx", _inputs(predictor.first, 2)
        names = [str(index) for index in range(Answering(predictor)(inputs).shape[1])]
        write_onnx(predictor, inputs, file, properties={}, class_names=names)
        request = {
            "file": str(file),
            "shape": predictor.first.input_shape,
            "dtype": str(inputs.dtype).removeprefix("torch."),
            "settings": settings,
            "seconds": timing.SECONDS,
        }
        return _in_process("raydistill.timing", request)


def _latencies(
    runtime: Literal["torch", "onnxruntime"], settings: Sequence[Sequence[int]], answer: Mapping[str, Any]
) -> list[Latency]:
    return [
        Latency(runtime, batch, threads, times["p50"], times["p95"], int(times["runs"]))
        for (batch, threads), times in zip(settings, answer["runs"], strict=True)
    ]


def _in_process(module: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """The answer of a module that is run in a process of its own, which holds nothing else."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", module],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            check=True,
        )
    except (subprocess.SubprocessError, OSError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        raise StageError(f"the process that measures ended: {said[-1] if said else error}") from error
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


if __name__ == "__main__":
    sys.stdout.write(json.dumps(time_torch(**json.load(sys.stdin))))
