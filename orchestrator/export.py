"""A trained model as it leaves the house: raw inputs in, probabilities out, and which inputs and classes these are.

The exported program, the model that MLflow logs and `distill predict` are one function of the same inputs.
"""

import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from raydistill.errors import PlanError, StoreError
from raydistill.prediction import load_model
from raydistill.runs.files import json_text
from raydistill.tasks.picture_files import printable
from raydistill.training.model_description import DESCRIPTION
from raydistill.training.model_files import PROGRAM as GIVEN
from raydistill.training.model_files import WEIGHTS, TrainedModel
from raydistill.training.trust import NOBODY, Trust

PROGRAM = "model.pt2"
CARD = "README.md"
EXAMPLES = 4  # a batch of one would be taken for a constant


class Probabilities(nn.Module):
    """A model with its normalisation, from raw inputs (B, ...) to probabilities (B, C) float32."""

    def __init__(self, model: TrainedModel) -> None:
        super().__init__()
        self.normalisation, self.model = model.normalisation, model.model
        self.input_dtype = model.input_dtype

    def forward(self, inputs: Tensor) -> Tensor:
        # Grey levels of 0 to 255 would be taken for pixels in [0, 1] without a word.
        torch.ops.aten._assert_tensor_metadata(inputs, None, None, self.input_dtype)
        logits: Tensor = self.model(self.normalisation(inputs))
        return torch.softmax(logits.float(), dim=1)


def export_model(folder: Path, target: Path, trust: Trust = NOBODY) -> list[Path]:
    """Write weights, description, a `torch.export` program, and a page about them to `target`."""
    model = load_model(folder, trust)
    if (given := model.description.get("program")) is not None:
        raise PlanError(f"`{folder}` is of a program that exists; it is `{folder / GIVEN / str(given)}`")
    if target.exists() and any(target.iterdir()):
        raise PlanError(f"`{target}` is not empty")
    target.mkdir(parents=True, exist_ok=True)
    for name in (DESCRIPTION, WEIGHTS):
        shutil.copyfile(folder / name, target / name)
    (target / CARD).write_text(card(model), encoding="utf-8")
    program = target / PROGRAM
    try:
        export_program(model, program)
    except Exception as error:
        raise StoreError(
            f"the weights are in `{target}`, but the model cannot be exported: {error}"
        ) from error
    return [target / DESCRIPTION, target / WEIGHTS, target / CARD, program]


def export_program(model: TrainedModel, path: Path) -> None:
    """Write `torch.export`'s archive: inputs (B, ...) in, probabilities (B, C) out, any batch size.

    It carries what `contract` says as the extra file `contract.json`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.export announces deprecations of its own parts
        batch = torch.export.Dim("batch", min=1)
        program = torch.export.export(
            Probabilities(model), (example_inputs(model)[:2],), dynamic_shapes=({0: batch},)
        )
        torch.export.save(program, path, extra_files={"contract.json": json_text(contract(model))})


def contract(model: TrainedModel) -> dict[str, Any]:
    """Inputs and outputs of the model as JSON values, for a reader who does not have its plan."""
    names = list(model.class_names)
    mean, std = model.normalisation.mean, model.normalisation.std
    unnamed = range(len(names), model.description["num_classes"])
    return {
        "task": model.description["task"].get("name", ""),
        "inputs": {
            "dtype": str(model.input_dtype).removeprefix("torch."),
            "shape": ["batch", *model.input_shape],
            "values": model.description.get("inputs", "as the task delivers them, pictures in [0, 1]"),
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


def card(model: TrainedModel) -> str:
    """The page that lies beside an exported model."""
    told = contract(model)
    inputs, outputs = told["inputs"], told["outputs"]
    shape = ", ".join(str(size) for size in inputs["shape"])
    classes = "\n".join(f"{index}. {printable(name)}" for index, name in enumerate(outputs["class_names"]))
    example = ", ".join(str(size) for size in (1, *model.input_shape))
    return f"""# A model for `{told["task"]}`

- In: {inputs["dtype"]} ({shape}): {inputs["values"]}. Nothing is left to normalise, mean and deviation are inside\
{_own_input(inputs)}.
- Out: float32 (batch, {outputs["shape"][1]}): {outputs["values"]}, in the order of the classes below.

```python
import torch

model = torch.export.load("{PROGRAM}").module()
probabilities = model(torch.zeros({example}, dtype=torch.{inputs["dtype"]}))
```

`distill predict` on this folder gives the same numbers. `{DESCRIPTION}` describes the network whose weights are in
`{WEIGHTS}`; in the program both are together.

Classes, counted from 0:

{classes}
"""


def _own_input(inputs: dict[str, Any]) -> str:
    """What the network makes of its inputs besides, for a reader of the page."""
    written = {key: value for key, value in (inputs["own_input"] or {}).items() if value is not None}
    told = ", ".join(f"{key} {value}" for key, value in written.items())
    return f", and so is how the network is shown a picture ({told})" if told else ""


def example_inputs(model: TrainedModel) -> Tensor:
    """A few raw inputs that any model takes: numbers in [0, 1), or the integer 0."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(EXAMPLES, *model.input_shape, generator=generator).to(model.input_dtype)
