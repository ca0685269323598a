"""How models that train side by side see one another: through files with recent weights and buffers.

Each writes one file into its own stage's folder, replaced as a whole, and reads those of its peers. No model waits
for another, and no file can do harm: one that is missing, half-written, damaged, of another architecture or not finite
is ignored until the next look.
"""

import copy
import logging
from pathlib import Path

import safetensors.torch
import torch
import torch.distributed as distributed
from safetensors import SafetensorError
from torch import Tensor, nn

from raydistill.errors import StoreError
from raydistill.runs.context import StageContext
from raydistill.runs.files import replaced_file
from raydistill.runs.mirror import bring, send
from raydistill.training.checkpoint import without_sharing
from raydistill.training.workers import Workers, state_of

PUBLISHED = "published.safetensors"
STEP, MODEL = "step", "model."
NOTHING = -1  # the step of who cannot be heard

log = logging.getLogger(__name__)

FileVersion = tuple[int, int]


def publish(path: Path, model: nn.Module, step: int) -> None:
    """Write a model as it is after `step` steps. Processes matter here, not power cuts: no fsync."""
    tensors = {f"{MODEL}{key}": value.contiguous() for key, value in model.state_dict().items()}
    with replaced_file(path) as temporary:
        safetensors.torch.save_file(without_sharing({STEP: torch.tensor(step), **tensors}), temporary)


def read_published(path: Path) -> tuple[int, dict[str, Tensor]]:
    """The step and the state of a published model, on the CPU; `StoreError` when there is nothing whole."""
    try:
        # Not mapped into memory: on a network file system, a file that is replaced meanwhile would kill the reader.
        tensors = safetensors.torch.load(path.read_bytes())
        step = int(tensors.pop(STEP))
    except (OSError, SafetensorError, KeyError) as error:
        raise StoreError(f"`{path}` cannot be read: {error}") from error
    if not all(value.isfinite().all() for value in tensors.values()):
        raise StoreError(f"`{path}` is not finite: that training diverges")
    return step, {key.removeprefix(MODEL): value for key, value in tensors.items()}


class Exchange:
    """The peers of one model, as private copies that never train: frozen, in eval mode, on the model's device.

    `steps`: for each peer whose file could be read, the number of its own steps after which it wrote the copied
    weights. With several workers, the main one reads the files and sends the copies to the others.
    """

    def __init__(self, model: nn.Module, context: StageContext) -> None:
        self.model, self.context, self.workers = model, context, Workers.of(context)
        self.copies = {name: copy.deepcopy(model).eval().requires_grad_(False) for name in context.peers}
        self.steps: dict[str, int] = {}
        self._stamps: dict[str, FileVersion] = {}

    def publish(self, step: int) -> None:
        """Let the peers see the model, unless another attempt at this stage has taken over."""
        if self.context.is_main:
            self.context.check_current()
            path = self.context.folder.path / PUBLISHED
            publish(path, self.model, step)
            send(path)

    def look(self) -> None:
        """Bring the copies up to date with what the peers have published by now."""
        found = [self._look_at(name) if self.context.is_main else (NOTHING, False) for name in self.copies]
        if self.context.world > 1:
            found = self._sent(found)
        self.steps = {
            name: step for name, (step, _) in zip(self.copies, found, strict=True) if step != NOTHING
        }

    @torch.no_grad()
    def predictions(self, inputs: Tensor) -> Tensor:
        """Logits (B, M, C) float32 of the M peers whose files could be read."""
        logits = [self.copies[name](inputs).float() for name in self.steps]
        return torch.stack(logits, dim=1) if logits else inputs.new_zeros(len(inputs), 0, 0)

    def _look_at(self, name: str) -> tuple[int, bool]:
        """The step at which a peer wrote its file, `NOTHING` if there is no whole one; and whether the file is
        new."""
        path = self.context.peer(name).path / PUBLISHED
        try:
            bring(path)
            stamp = _stamp(path)
            if stamp == self._stamps.get(name):
                return self.steps[name], False
            step, state = read_published(path)
            self.copies[name].load_state_dict(state)
        except (StoreError, RuntimeError) as error:  # the latter by torch: another architecture
            if self._stamps.pop(name, None) is not None:
                log.warning("`%s` is not heard for now: %s", name, error)
            return NOTHING, False
        if name not in self._stamps:
            log.info("hears `%s`, from its step %d on", name, step)
        self._stamps[name] = stamp
        return step, True

    def _sent(self, found: list[tuple[int, bool]]) -> list[tuple[int, bool]]:
        """Send the steps that the main process found, and the copies that it loaded, to every process."""
        table = torch.tensor(found, dtype=torch.int64, device=self.context.device)
        distributed.broadcast(table, 0)
        found = [(step, bool(is_new)) for step, is_new in table.tolist()]
        for model, (_, is_new) in zip(self.copies.values(), found, strict=True):
            if is_new:
                self.workers.send(state_of(model))
        return found


def _stamp(path: Path) -> FileVersion:
    """What changes when a file is replaced."""
    try:
        status = path.stat()
    except OSError as error:
        raise StoreError(f"`{path}` is not there: {error.strerror}") from error
    return status.st_mtime_ns, status.st_ino
