"""Make an int8 model of a finished one, by onnxruntime's calibration after training."""

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raydistill.errors import StageError
from raydistill.kinds.quantize import QuantizeConfig
from raydistill.lookup import missing_onnx_writer
from raydistill.models.exported import Exported
from raydistill.models.onnx_export import to_onnx
from raydistill.plan.model import ModelConfig
from raydistill.runs.context import StageContext
from raydistill.stages.training_stage import load_data
from raydistill.stages.transfer_data import load_transfer_set
from raydistill.training import model_files
from raydistill.training.cost import note_size
from raydistill.training.data import Views
from raydistill.training.evaluation import judge_splits
from raydistill.training.model_files import TrainedModel

INPUTS, LOGITS = "inputs", "logits"
AT_ONCE = 64  # samples that are calibrated on together: all their activations are held
SAME = 0.99  # of the samples that both ways of running the file have to answer alike
METHODS = {"largest": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}
FLOAT_BYTES, INT8_BYTES, AGREEMENT = "size/float32_bytes", "size/int8_bytes", "int8/agreement_with_float32"


def quantize(config: QuantizeConfig, context: StageContext) -> dict[str, float]:
    """Metrics of the int8 model; the bytes of both ONNX files, and on how many samples they answer alike."""
    if (missing := missing_onnx_writer()) is not None:
        raise StageError(missing)
    data = load_data(context)
    trained = model_files.load(context.input(config.model))
    if isinstance(trained.plain, Exported) or any(
        isinstance(part, Exported) for part in trained.model.modules()
    ):
        raise StageError(f"`{config.model}` is a program already; name the network that it was made from")
    transfer = load_transfer_set(config.transfer, Views(), context, data, with_unlabelled=True)
    order = transfer.epoch_order(config.seed, 0)[: config.samples].cpu()
    seen = [trained.prepared(part.cpu()) for part in transfer.split.batches(order.split(AT_ONCE), None)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        float_file, file = folder / "float32.onnx", folder / "model.onnx"
        _write_float(trained, seen[0], float_file)
        _write_int8(config, float_file, file, seen)
        sizes = {FLOAT_BYTES: float_file.stat().st_size, INT8_BYTES: file.stat().st_size}
        alike = _compare(trained, file, seen, context)
        model = ModelConfig.model_validate(
            {
                "name": "exported",
                "weights": str(file),
                "num_classes": trained.description["num_classes"],
            }
        )
        program = model_files.build_whole(model, context.task, data.normalisation, context.warn)
        model_files.save(context, program, model, data)
    loaded = model_files.load_saved(context)
    note_size(context, [loaded.model])
    splits = {
        name: split.to(context.device)
        for name, split in (("validation", data.validation), ("test", data.test))
    }
    judged = judge_splits(context, loaded.logits, splits, config.batch_size)
    return judged | {key: float(value) for key, value in sizes.items()} | {AGREEMENT: alike}


def _write_float(trained: TrainedModel, examples: Tensor, file: Path) -> None:
    """The network from prepared inputs to logits."""
    import onnx

    try:
        model = to_onnx(trained.model.cpu().eval(), examples, inputs=INPUTS, outputs=[LOGITS])
    except ValueError as error:
        raise StageError(str(error)) from error
    onnx.save_model(model, str(file))


def _write_int8(config: QuantizeConfig, float_file: Path, file: Path, seen: list[Tensor]) -> None:
    from onnxruntime import quantization  # type: ignore[import-untyped,import-not-found,unused-ignore]
    from onnxruntime.quantization.shape_inference import (  # type: ignore[import-untyped,import-not-found,unused-ignore]
        quant_pre_process,
    )

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc,unused-ignore]
        """Batches of prepared inputs."""

        def __init__(self) -> None:
            self._parts: Iterator[Tensor] = iter(seen)

        def get_next(self) -> dict[str, Any] | None:
            part = next(self._parts, None)
            return None if part is None else {INPUTS: part.numpy()}

    folded = float_file.with_name("folded.onnx")
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it advises, on the root logger, what is done here
    try:
        quant_pre_process(str(float_file), str(folded))
        quantization.quantize_static(
            str(folded),
            str(file),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=config.per_channel,
            reduce_range=config.seven_bits,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod[METHODS[config.calibration]],
        )
    except Exception as error:  # whatever the library raises
        first = (str(error).strip().splitlines() or [""])[0]
        raise StageError(
            f"onnxruntime cannot make integers of the model: {type(error).__name__}: {first}"
        ) from error
    finally:
        root.setLevel(level)


@torch.no_grad()
def _compare(trained: TrainedModel, file: Path, seen: list[Tensor], context: StageContext) -> float:
    """The share of samples that the int8 model answers as the float one does, as it will run; a warning where the
    same file without optimisations, one operation after the other as written, answers otherwise."""
    import onnxruntime

    answers = {}
    levels = onnxruntime.GraphOptimizationLevel
    for level in (levels.ORT_ENABLE_ALL, levels.ORT_DISABLE_ALL):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level, options.log_severity_level = level, 3
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        logits = [session.run([LOGITS], {INPUTS: part.numpy()})[0] for part in seen]
        answers[level] = np.concatenate(logits).argmax(axis=1)
    as_run, as_written = answers[levels.ORT_ENABLE_ALL], answers[levels.ORT_DISABLE_ALL]
    if (same := float((as_run == as_written).mean())) < SAME:
        context.warn(
            f"this machine's int8 kernels answer {100 * (1 - same):.1f} % of {len(as_run):,} samples otherwise than the"
            " model says: sums overflow on processors without VNNI; set `seven_bits: true`"
        )
    expected = torch.cat([trained.model(part).argmax(dim=1) for part in seen]).numpy()
    return float((as_run == expected).mean())
