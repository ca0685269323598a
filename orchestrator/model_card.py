"""What an exported model says of itself: the contract of its inputs and outputs, and the page beside it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from raydistill.inference_cost import InferenceCost
from raydistill.metrics import Accuracy, Samples
from raydistill.plain import printable_lines
from raydistill.prediction import Predictor
from raydistill.report.comparison import wilson_interval
from raydistill.runs.files import json_text
from raydistill.runs.folder import CONFIG
from raydistill.runs.view import open_stage
from raydistill.tasks.picture_files import printable
from raydistill.tasks.task import GREY_LEVELS
from raydistill.training.model_description import DESCRIPTION
from raydistill.training.model_files import WEIGHTS, TrainedModel

PROGRAM, ONNX, CARD = "model.pt2", "model.onnx", "README.md"


def contract(model: TrainedModel, dtype: torch.dtype | None = None) -> dict[str, Any]:
    """Inputs, of `dtype` where that is not the model's own, and outputs as JSON values, for a reader who does not have
    its plan."""
    names = list(model.class_names)
    mean, std = model.normalisation.mean, model.normalisation.std
    unnamed = range(len(names), model.description["num_classes"])
    values = model.description.get("inputs", "as the task delivers them, pictures in [0, 1]")
    if dtype == torch.uint8:
        values = values.replace(GREY_LEVELS, "grey levels of 0 to 255")
    return {
        "task": model.description["task"].get("name", ""),
        "inputs": {
            "dtype": str(dtype or model.input_dtype).removeprefix("torch."),
            "shape": ["batch", *model.input_shape],
            "values": values,
            "normalisation": {"inside": True, "mean": mean.tolist(), "std": std.tolist()},
            "own_input": model.description["model"].get("input"),
        },
        "outputs": {
            "values": "probabilities; every row sums to 1",
            "dtype": "float32",
            "shape": ["batch", model.description["num_classes"]],
            "class_names": [*names, *(str(index) for index in unnamed)],
        },
    }


@dataclass(frozen=True)
class Compared:
    """An ONNX file's inputs, and its largest `difference` of a probability from torch's on so many `samples`."""

    dtype: torch.dtype
    samples: int
    difference: float


@dataclass(frozen=True)
class Origin:
    """Where a model comes from, as far as its folder tells: the stage, how it was judged, and the user's `license`."""

    fingerprint: str
    kind: str
    config: Mapping[str, Any]
    metrics: Mapping[str, float]
    versions: Mapping[str, str]
    license: str | None

    @classmethod
    def of(cls, folder: Path, license: str | None) -> "Origin":
        """What a stage's folder tells; nothing where it is an exported one."""
        if not (folder / CONFIG).is_file():
            return cls("", "", {}, {}, {}, license)
        stage = open_stage(folder.absolute())
        versions = stage.record.versions if stage.record else {}
        return cls(stage.fingerprint, stage.kind, stage.config, stage.metrics, versions, license)


def card(
    predictor: Predictor,
    origin: Origin,
    compared: Compared | None,
    cost: InferenceCost,
    *,
    has_program: bool,
) -> str:
    """The page that lies beside an exported model."""
    model = predictor.first
    told = contract(model, None if compared is None or has_program else compared.dtype)
    inputs, outputs = told["inputs"], told["outputs"]
    shape = ", ".join(str(size) for size in inputs["shape"])
    classes = "\n".join(f"{index}. {printable(name)}" for index, name in enumerate(outputs["class_names"]))
    several = f"{len(predictor.members)} models that answer as one.\n\n" if len(predictor.members) > 1 else ""
    parts = [
        f"""# A model for `{told["task"]}`

{several}- In: {inputs["dtype"]} ({shape}): {inputs["values"]}. Nothing is left to normalise, mean and deviation are\
 inside{_own_input(inputs)}.
- Out: float32 (batch, {outputs["shape"][1]}): {outputs["values"]}, in the order of the classes below.
""",
        _program_part(model) if has_program else "",
        _onnx_part(model, compared) if compared else "",
        _weights_part() if compared is None or has_program else "",
        _made_part(origin),
        _numbers_part(origin),
        _cost_part(cost),
        _limits_part(origin),
        f"## Classes, counted from 0\n\n{classes}\n",
    ]
    return "\n".join(part for part in parts if part)


def _example(model: TrainedModel) -> str:
    return ", ".join(str(size) for size in (1, *model.input_shape))


def _program_part(model: TrainedModel) -> str:
    dtype = str(model.input_dtype).removeprefix("torch.")
    return f"""```python
import torch

model = torch.export.load("{PROGRAM}").module()
probabilities = model(torch.zeros({_example(model)}, dtype=torch.{dtype}))
```
"""


def _onnx_part(model: TrainedModel, compared: Compared) -> str:
    inputs = contract(model, compared.dtype)["inputs"]
    return f"""```python
import numpy
import onnxruntime

session = onnxruntime.InferenceSession("{ONNX}")
inputs = numpy.zeros(({_example(model)},), dtype="{inputs["dtype"]}")
probabilities, label = session.run(None, {{"inputs": inputs}})
```

`{ONNX}` takes batches of any size, of {inputs["dtype"]}: {inputs["values"]}. Its probabilities are within\
 {compared.difference:.2g} of torch's on {compared.samples:,} samples; `label` is the name of the most probable class.
"""


def _weights_part() -> str:
    return f"""`distill predict` on this folder gives the same numbers. `{DESCRIPTION}` describes the network, and its
weights are in `{WEIGHTS}`; a program has both.
"""


def _made_part(origin: Origin) -> str:
    if not origin.kind:
        return ""
    versions = ", ".join(f"{printable(name)} {printable(number)}" for name, number in origin.versions.items())
    written = "\n".join(f"    {line}" for line in printable_lines(json_text(origin.config)).splitlines())
    return f"""## How it was made

By a stage `{printable(origin.kind)}` with the fingerprint `{origin.fingerprint}` ({versions}) of these options:

{written}
"""


def _numbers_part(origin: Origin) -> str:
    rows = list(_rows(origin.metrics))
    head = ["## How good it is", "", "| | value | 95 % interval |", "|---|---|---|"]
    return "\n".join([*head, *rows, ""]) if rows else ""


def _rows(metrics: Mapping[str, float]) -> Iterator[str]:
    """A row per metric; the interval of an accuracy is Wilson's of its samples."""
    for name, value in metrics.items():
        split, _, metric = name.partition("/")
        samples = metrics.get(Samples.on(split))
        interval = ""
        if metric == Accuracy.name and samples:
            low, high = wilson_interval(value, round(samples))
            interval = f"{low:.4f} to {high:.4f}"
        yield f"| {printable(name)} | {value:.6g} | {interval} |"


def _cost_part(cost: InferenceCost) -> str:
    counts = (("parameters", cost.parameters), ("multiply-adds for one input", cost.multiply_adds))
    known = [f"{count:,} {name}" for name, count in (*counts, ("bytes of weights", cost.bytes)) if count]
    lines = ["## What it costs", "", f"{', '.join(known)}.", ""]
    if cost.latencies:
        lines += [f"Measured on {cost.machine}:", ""]
        lines += [
            "| runtime | batch | threads | p50 | p95 | memory of the process |",
            "|---|---|---|---|---|---|",
        ]
        for latency in cost.latencies:
            peak = cost.peak_bytes.get(latency.runtime)
            cells = [
                latency.runtime,
                str(latency.batch),
                str(latency.threads),
                f"{1000 * latency.p50:.3g} ms",
                f"{1000 * latency.p95:.3g} ms",
                "" if peak is None else f"{peak / 2**20:.0f} MiB",
            ]
            lines.append(f"| {' | '.join(cells)} |")
        lines += ["", *cost.remarks]
    return "\n".join(lines)


def _limits_part(origin: Origin) -> str:
    terms = printable(origin.license) if origin.license else "not stated"
    return f"""## Limits

- It tells the classes below apart and knows no other: whatever it is shown gets one of them.
- How good it is was measured on the splits of its own task. Of samples from elsewhere nothing is known.
- Its probabilities are the network's own; the calibration error above says how far they are from frequencies.
- License: {terms}.
"""


def _own_input(inputs: dict[str, Any]) -> str:
    """What the network makes of its inputs besides, for a reader of the page."""
    written = {key: value for key, value in (inputs["own_input"] or {}).items() if value is not None}
    told = ", ".join(f"{key} {value}" for key, value in written.items())
    return f", and so is how the network is shown a picture ({told})" if told else ""
