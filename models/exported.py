"""Networks that exist as programs: of `torch.export` (`.pt2`) and ONNX (`.onnx`). They answer and are never trained.

What the rest sees is a module that returns its output, or a mapping of several by their names, which are features, too.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn


class Exported(nn.Module):
    """A program under its outputs' names.

    `sample_shape` is that of one input, with None where any size goes. `rows`: how many inputs it takes at once, None
    for any number, 0 for one without a batch axis; others are divided, and the last part filled up with its last row.
    One that takes bytes is given pixels in [0, 1], which are rounded to grey levels.
    """

    def __init__(
        self,
        names: Sequence[str],
        sample_shape: Sequence[int | None] | None,
        rows: int | None,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.names, self.rows, self.dtype = tuple(names), rows, dtype
        self.sample_shape = None if sample_shape is None else tuple(sample_shape)
        self.takes_raw = (
            False  # inputs as the task delivers them: it normalises by itself, and gives probabilities
        )
        self.outputs = nn.ModuleList(nn.Identity() for _ in names)
        self.feature_paths = {name: f"outputs.{index}" for index, name in enumerate(names)}

    def run(self, inputs: Tensor) -> Sequence[Tensor]:
        """Its outputs, in the order of the names, for a batch as it takes them."""
        raise NotImplementedError

    def forward(self, inputs: Tensor) -> Tensor | dict[str, Tensor]:
        """Outputs (B, …) for inputs (B, …)."""
        self._check(inputs)
        is_bytes = self.dtype == torch.uint8
        rows = (inputs * 255).round().clamp(0, 255).to(torch.uint8) if is_bytes else inputs.to(self.dtype)
        parts = [self.run(rows)] if self.rows is None else list(self._parts(rows, self.rows))
        found = [
            module(
                torch.cat(parts_of_one)[: len(inputs)] if len(parts) > 1 else parts_of_one[0][: len(inputs)]
            )
            for module, parts_of_one in zip(self.outputs, zip(*parts, strict=True), strict=True)
        ]
        return found[0] if len(found) == 1 else dict(zip(self.names, found, strict=True))

    def _parts(self, inputs: Tensor, rows: int) -> Iterator[Sequence[Tensor]]:
        if not rows:
            yield from ([output[None] for output in self.run(row)] for row in inputs)
            return
        for part in inputs.split(rows):
            missing = rows - len(part)
            full = torch.cat([part, part[-1:].expand(missing, *part.shape[1:])]) if missing else part
            outputs = self.run(full)
            for name, output in zip(self.names, outputs, strict=True):
                if output.dim() == 0 or len(output) != rows:
                    raise ValueError(
                        f"output `{name}` has the shape {tuple(output.shape)} for a batch of {rows}; its first axis"
                        " must be the batch: export it so"
                    )
            yield outputs

    def _check(self, inputs: Tensor) -> None:
        wanted, given = self.sample_shape, tuple(inputs.shape[1:])
        if wanted is None:
            return
        if len(wanted) != len(given) or any(a not in (None, b) for a, b in zip(wanted, given, strict=True)):
            shape = ", ".join("any" if size is None else str(size) for size in wanted)
            raise ValueError(f"takes inputs of shape ({shape}), not {given}; export it for those of the task")
