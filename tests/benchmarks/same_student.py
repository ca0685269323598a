"""Whether a teacher gives the same student however it is brought: as weights, as a program, as a file of logits.

    python tests/benchmarks/same_student.py [--seeds 3]

A network is trained on the embedded digits, and written out as a state dict, by `torch.export`, as ONNX, and as `.npz`
of its logits. Each teaches the same student; told are the students' largest differences from that of the state dict.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

import raydistill
from raydistill.stages.export_targets import export_targets
from raydistill.training import model_files

CNN = {"name": "cnn", "widths": [16, 32], "batch_norm": True}
MLP = {"name": "mlp", "widths": [100]}
EPOCHS = 10


def run(root: Path, stages: dict[str, Any]) -> Any:
    plan = raydistill.build_plan({"name": "same-student", "task": {"name": "mnist"}, "stages": stages})
    return raydistill.run(plan, runs=root, local=True)


def write_out(model: torch.nn.Module, folder: Path) -> None:
    """The same network as `teacher.pth`, `.pt2` and `.onnx`."""
    torch.save(model.state_dict(), folder / "teacher.pth")
    inputs, batch = (torch.rand(2, 1, 28, 28),), torch.export.Dim("batch")
    torch.export.save(
        torch.export.export(model, inputs, dynamic_shapes=({0: batch},)), folder / "teacher.pt2"
    )
    torch.onnx.export(
        model, inputs, folder / "teacher.onnx", dynamo=True, dynamic_shapes=({0: batch},), verbose=False
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    seeds = parser.parse_args().seeds
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        first = run(
            root,
            {
                "teacher": {"stage": "train", "model": CNN, "epochs": 3},
                "soft": {"stage": "predict_targets", "teacher": "teacher"},
            },
        )
        write_out(model_files.load(first["teacher"].folder, "cpu").model.eval(), root)
        export_targets(first["soft"].folder.path, root / "teacher.npz", root)
        exported = {"stage": "pretrained", "model": {"name": "exported"}}
        ways: dict[str, dict[str, Any]] = {
            "pth": {"stage": "pretrained", "model": CNN},
            "pt2": exported,
            "onnx": exported,
        }
        teachers = {key: way | {"weights": str(root / f"teacher.{key}")} for key, way in ways.items()}
        teachers["npz"] = {"stage": "external_targets", "file": str(root / "teacher.npz")}
        taught = {"stage": "distill", "student": MLP, "epochs": EPOCHS, "replicas": seeds}
        students = {
            f"of-{key}": taught | ({"targets": key} if key == "npz" else {"teachers": [key]})
            for key in teachers
        }
        done = run(root, teachers | students)
        for key in teachers:
            stores = [done[name if name == "npz" else f"{name}.targets"].folder.path for name in (key, "pth")]
            own, other = (
                np.load(export_targets(store, root / f"{place}.npz", root))["logits"]
                for place, store in enumerate(stores)
            )
            print(
                f"{key:>5}: largest difference of a logit {abs(own.astype(float) - other).max():.1e}",
                end="; ",
            )
            tell(done, key, seeds)


def tell(done: Any, key: str, seeds: int) -> None:
    """The largest difference of a student's weight, and the errors of each seed."""
    apart, errors = 0.0, []
    for seed in range(seeds):
        end = f".{seed}" if seeds > 1 else ""
        own, other = (model_files.load(done[f"of-{way}{end}"].folder, "cpu") for way in (key, "pth"))
        weights = zip(own.model.state_dict().values(), other.model.state_dict().values(), strict=True)
        apart = max(apart, *(float((one - two).abs().max()) for one, two in weights))
        errors.append(1 - done[f"of-{key}{end}"].metrics["test/accuracy"])
    shown = ", ".join(f"{1000 * error:.0f}" for error in errors)
    print(f"of a weight {apart:.1e}; test errors of 1,000: {shown}")


if __name__ == "__main__":
    main()
