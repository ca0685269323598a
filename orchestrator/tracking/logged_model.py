"""A torch module as an MLflow model on disk, with the signature that MLflow checks inputs against."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raydistill.tracking.store import import_mlflow


def save_logged_model(
    module: Any,
    target: Path,
    example: Any,
    outputs: Any,
    *,
    requirements: Sequence[str],
    metadata: Mapping[str, Any],
) -> None:
    """Write `module`, which turns the array `example` (B, ...) into the probabilities `outputs` (B, C), to `target`."""
    import_mlflow()
    from mlflow.models import ModelSignature
    from mlflow.pytorch import save_model
    from mlflow.types import Schema, TensorSpec

    # The input has no name: MLflow would then want a dict, which its torch flavour does not take.
    signature = ModelSignature(
        Schema([TensorSpec(example.dtype, (-1, *example.shape[1:]))]),
        Schema([TensorSpec(outputs.dtype, (-1, *outputs.shape[1:]), name="probabilities")]),
    )
    save_model(
        module,
        str(target),
        signature=signature,
        input_example=example,
        pip_requirements=list(requirements),
        metadata=dict(metadata),
    )
