"""CRD (Tian et al., ICLR 2020, arXiv 1910.10699) with its memory bank: a vector of every sample, by each network.

A sample is told from K others in the way of noise-contrastive estimation. The paper's h(e) = e / (e + K/N), with
e = exp(cosine / temperature) / Z, is the logistic function of log e - log(K/N): so it is computed, and no exponential
overflows. A step compares its samples with the whole bank and counts how often each row was drawn: rows that were
looked up one by one would be B x K vectors, a hundred times the memory, and would be added up in any order on a GPU.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydistill.kinds.relation_methods import ContrastiveBankConfig
from raydistill.methods.embedding import EmbeddingMethod
from raydistill.methods.features import direction
from raydistill.methods.projected import pooled
from raydistill.models.taps import Output
from raydistill.targets.mixing import TeacherTargets
from raydistill.tasks.devices import to_device
from raydistill.tasks.hashing import fold_key
from raydistill.tasks.labels import UNLABELLED
from raydistill.tasks.seeds import Purpose
from raydistill.training.counter_random import below, random_bits
from raydistill.training.data import Batch
from raydistill.training.method import MethodContext
from raydistill.training.workers import from_all

EPSILON = 1e-7  # beside K/N, as in the release
PROBED = 2  # samples of the loop's first look at the losses, whatever the size of a batch


class ContrastiveBank(EmbeddingMethod):
    """Each network's projected embedding picks the other's of the same sample out of the other's bank.

    All workers write what all of them saw, so that their banks stay the same. Draws are those of a sample in a batch,
    on whichever worker it is.
    """

    written_alike = ("student_bank", "teacher_bank", "log_normalizers", "batches")
    student_bank: Tensor
    teacher_bank: Tensor
    log_normalizers: Tensor
    batches: Tensor
    order: Tensor
    first_of_class: Tensor
    class_sizes: Tensor

    def __init__(self, config: ContrastiveBankConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        self.config, self.world = config, context.world
        self.most = max(context.batch_size, PROBED)
        self.key = fold_key(context.seed, Purpose.NEGATIVES)
        student, teacher = context.both()
        (own,), (aim,) = student.shapes(self.student_features), teacher.shapes(self.teacher_features)
        self.heads = nn.ModuleList(nn.Linear(shape[0], config.dimensions) for shape in (own, aim))
        labels = torch.empty(0, dtype=torch.int64) if context.labels is None else context.labels.cpu()
        banks = first_banks(len(labels), config.dimensions, context.seed)
        self.register_buffer("student_bank", banks[0])
        self.register_buffer("teacher_bank", banks[1])
        self.register_buffer("log_normalizers", torch.full((2,), math.nan))
        self.register_buffer("batches", torch.zeros(1, dtype=torch.int64))
        names = ("order", "first_of_class", "class_sizes")
        sorted_rows = by_class(labels if config.spare_own_class else torch.full_like(labels, UNLABELLED))
        for name, values in zip(names, sorted_rows, strict=True):
            self.register_buffer(name, values, persistent=False)
        if len(labels) and self.class_sizes.max() == len(labels):
            raise ValueError(
                f"`{config.method}` tells samples from those of other classes, and the transfer set has none; take"
                " another method, or more classes"
            )
        self._has_begun, self._is_normalized = False, False

    def losses(self, student: Output, teacher: TeacherTargets | None, batch: Batch) -> dict[str, Tensor]:
        assert teacher is not None
        embeddings = (
            student.features[self.student_features[0]],
            teacher.features[self.teacher_features[0]].detach(),
        )
        with torch.autocast(student.logits.device.type, enabled=False):
            vectors = [
                direction(head(pooled(part))) for head, part in zip(self.heads, embeddings, strict=True)
            ]
            rows = to_device(batch.rows, vectors[0].device)
            drawn = self.drawn(rows, batch.ids)
            # Copies: the way back needs the banks as they were.
            banks = self.teacher_bank.clone(), self.student_bank.clone()
            logits = [
                (part / self.config.temperature) @ bank.mT for part, bank in zip(vectors, banks, strict=True)
            ]
            self._normalize(logits, rows, drawn)
            told = [
                told_apart(part, log, rows, drawn, self.config.negatives).mean()
                for part, log in zip(logits, self.log_normalizers, strict=True)
            ]
            self._remember(rows, torch.cat(vectors, dim=1))
        return {"contrast": told[0], "contrast_teacher": told[1]}

    def at_step(self, step: int) -> None:
        # Known to the host, so that later steps do not look for what only the first batch decides.
        self._is_normalized = self._has_begun

    @torch.no_grad()
    def drawn(self, rows: Tensor, ids: Tensor) -> Tensor:
        """How often samples (B,) are told from each row of the bank in their next batch, (B, N)."""
        first, size, total = self.first_of_class[rows], self.class_sizes[rows], len(self.order)
        key = random_bits(self.batches, self.key, 1).squeeze()
        places = below(ids, key, total - size, self.config.negatives)
        places = places + size[:, None] * (places >= first[:, None])  # past the own class
        ones = torch.ones((), device=rows.device).expand(places.shape)
        return torch.zeros(len(rows), total, device=rows.device).scatter_add_(1, self.order[places], ones)

    @torch.no_grad()
    def _normalize(self, logits: list[Tensor], rows: Tensor, drawn: Tensor) -> None:
        """In the first batch, on all workers: e = exp(logits) / Z has the mean 1/N over rows that were looked at."""
        self._has_begun = True
        if self._is_normalized:
            return
        seen = drawn.scatter_add(1, rows[:, None], torch.ones_like(drawn[:, :1])).log()
        sums = torch.stack([torch.logsumexp(part + seen, dim=1) for part in logits], dim=1)
        sums, rows = (self._from_all(part) for part in (sums, rows))
        is_first = first_alike(rows) == torch.arange(len(rows), device=rows.device)
        sums = torch.where(is_first[:, None], sums, -torch.inf)
        looked_at = is_first.sum() * (self.config.negatives + 1)
        logs = torch.logsumexp(sums, dim=0) - looked_at.log() + math.log(len(self.order))
        self.log_normalizers.copy_(torch.where(self.log_normalizers.isnan(), logs, self.log_normalizers))

    @torch.no_grad()
    def _remember(self, rows: Tensor, vectors: Tensor) -> None:
        """Move the rows of every worker's samples towards what the heads made of them, (B, 2 d)."""
        rows, vectors = self._from_all(rows), self._from_all(vectors)
        first = first_alike(rows)  # of samples that come twice: whichever is written last, it is the same
        for bank, values in zip((self.student_bank, self.teacher_bank), vectors.chunk(2, dim=1), strict=True):
            moved = self.config.momentum * bank[rows] + (1 - self.config.momentum) * values
            bank.index_copy_(0, rows, direction(moved)[first])
        self.batches += 1

    def _from_all(self, values: Tensor) -> Tensor:
        """All workers' values (B, ...); some come twice, where batches are of different sizes."""
        if self.world == 1:
            return values
        return from_all(
            torch.cat([values, values[:1].expand(self.most - len(values), *values.shape[1:])]), self.world
        )


def told_apart(logits: Tensor, log_normalizer: Tensor, rows: Tensor, drawn: Tensor, negatives: int) -> Tensor:
    """The loss (B,) of samples: log e of every row of the bank is `logits` (B, N) less the normalizer's, their own
    `rows` are (B,), and each was `drawn` (B, N) times among the `negatives`."""
    noise = negatives / logits.shape[1]
    margins = logits - (log_normalizer + math.log(noise + EPSILON))
    own = F.softplus(-margins.gather(1, rows[:, None])).squeeze(1)  # -log h
    others = (drawn * F.softplus(margins)).sum(dim=1)
    return own + others + negatives * math.log1p(EPSILON / noise)


def first_banks(count: int, dimensions: int, seed: int) -> Tensor:
    """Two banks of `count` vectors of length 1 on average, (2, N, d): the same on every worker and device."""
    generator = torch.Generator().manual_seed(fold_key(seed, Purpose.BANK))
    side = math.sqrt(3 / dimensions)
    return (2 * torch.rand(2, count, dimensions, generator=generator, device="cpu") - 1) * side


def by_class(labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows (N,) in the order of their labels; and for each row, where its class begins there and how many it has. What
    has no label is a class of its own."""
    alone = len(labels) + labels.abs().amax() + torch.arange(len(labels)) if len(labels) else labels
    ordered, order = torch.where(labels == UNLABELLED, alone, labels).sort(stable=True)
    _, number, counts = ordered.unique_consecutive(return_inverse=True, return_counts=True)
    first, sizes = torch.empty_like(order), torch.empty_like(order)
    first[order], sizes[order] = (counts.cumsum(0) - counts)[number], counts[number]
    return order, first, sizes


def first_alike(rows: Tensor) -> Tensor:
    """For each of these numbers (B,), where it stands first among them."""
    return (rows[:, None] == rows).int().argmax(dim=1)
