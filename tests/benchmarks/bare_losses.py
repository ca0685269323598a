"""Methods' losses as somebody would write them by hand, or as the papers' releases have them.

Each is a function of the method's own modules and of the teachers, and gives a function of what a step has `Seen`.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, permutations
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.svm import OneClassSVM
from torch import Tensor, nn

from raydistill.methods.margins import margins


@dataclass(frozen=True)
class Seen:
    """What a bare step has at hand: the student's logits, labels, which samples they are, its features by name, and the
    same of each teacher that was asked."""

    student: Tensor
    labels: Tensor
    rows: Tensor
    own: Mapping[str, Tensor]
    teachers: Sequence[Tensor]
    members: Sequence[Mapping[str, Tensor]]

    @property
    def teacher(self) -> Tensor:
        """The logits of the only teacher, or of the first one."""
        return self.teachers[0]

    @property
    def aims(self) -> Mapping[str, Tensor]:
        """And its features."""
        return self.members[0]


BareLoss = Callable[[Seen], Tensor]
BareMethod = Callable[[nn.Module, Sequence[nn.Module]], BareLoss]


def own_part(auxiliary: nn.Module, name: str) -> Iterator[nn.Module]:
    """The children of the list of modules that a method calls so."""
    yield from next(part for path, part in auxiliary.named_modules() if path.endswith(name)).children()


def softened(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    soft = torch.softmax(teacher / temperature, dim=1)
    divergence = F.kl_div(torch.log_softmax(student / temperature, dim=1), soft, reduction="batchmean")
    return temperature**2 * divergence


def bare_hinton(auxiliary: nn.Module, teachers: Sequence[nn.Module]) -> BareLoss:
    return lambda seen: softened(seen.student, seen.teacher, 4) + F.cross_entropy(seen.student, seen.labels)


def bare_dkd(auxiliary: nn.Module, teachers: Sequence[nn.Module]) -> BareLoss:
    """As mdistiller has it: two divergences of masked softmaxes."""

    def loss(seen: Seen) -> Tensor:
        is_label = F.one_hot(seen.labels, seen.student.shape[1]).bool()
        own, aim = (torch.softmax(logits / 4, dim=1) for logits in (seen.student, seen.teacher))
        pair = [torch.stack(((p * is_label).sum(1), (p * ~is_label).sum(1)), dim=1) for p in (own, aim)]
        target = F.kl_div(pair[0].log(), pair[1], reduction="batchmean")
        rest = [logits / 4 - 1000.0 * is_label for logits in (seen.student, seen.teacher)]
        other = F.kl_div(rest[0].log_softmax(1), rest[1].softmax(1), reduction="batchmean")
        return 16 * (target + 8 * other) + F.cross_entropy(seen.student, seen.labels)

    return loss


def bare_nkd(auxiliary: nn.Module, teachers: Sequence[nn.Module]) -> BareLoss:
    def loss(seen: Seen) -> Tensor:
        is_label = F.one_hot(seen.labels, seen.student.shape[1]).bool()
        logs, sure = seen.student.log_softmax(1), seen.teacher.softmax(1)
        label = -(sure * logs)[is_label].mean()
        rest = [logits - 1000.0 * is_label for logits in (seen.student, seen.teacher)]
        other = F.kl_div(rest[0].log_softmax(1), rest[1].softmax(1), reduction="batchmean")
        return label + 1.5 * other + F.cross_entropy(seen.student, seen.labels)

    return loss


def bare_dist(auxiliary: nn.Module, teachers: Sequence[nn.Module]) -> BareLoss:
    def apart(one: Tensor, other: Tensor) -> Tensor:
        one, other = (part - part.mean(1, keepdim=True) for part in (one, other))
        return 1 - F.cosine_similarity(one, other, dim=1, eps=1e-8).mean()

    def loss(seen: Seen) -> Tensor:
        own, aim = (torch.softmax(logits / 4, dim=1) for logits in (seen.student, seen.teacher))
        return 32 * (apart(own, aim) + apart(own.t(), aim.t())) + F.cross_entropy(seen.student, seen.labels)

    return loss


def bare_levels(auxiliary: nn.Module, teachers: Sequence[nn.Module]) -> BareLoss:
    def loss(seen: Seen) -> Tensor:
        total = 0.1 * F.cross_entropy(seen.student, seen.labels)
        for heat in (2, 3, 4, 5, 6):
            logs = (seen.student / heat).log_softmax(1)
            own, aim = logs.exp(), (seen.teacher / heat).softmax(1)
            total = total + 0.9 * heat**2 * F.kl_div(logs, aim, reduction="batchmean")
            total = total + 0.9 * (aim @ aim.t() - own @ own.t()).square().sum() / len(own)
            total = total + 0.9 * (aim.t() @ aim - own.t() @ own).square().sum() / own.shape[1]
        return total

    return loss


def bare_wsld(auxiliary: nn.Module, teachers: Sequence[nn.Module]) -> BareLoss:
    def loss(seen: Seen) -> Tensor:
        with torch.no_grad():
            own, other = (
                F.cross_entropy(logits, seen.labels, reduction="none")
                for logits in (seen.student, seen.teacher)
            )
            weights = 1 - torch.exp(-own / (other + 1e-7))
        logs, aim = (seen.student / 2).log_softmax(1), (seen.teacher / 2).softmax(1)
        soft = (weights * F.kl_div(logs, aim, reduction="none").sum(1)).mean()
        return 10 * soft + F.cross_entropy(seen.student, seen.labels)

    return loss


class Reversed(torch.autograd.Function):
    """A scalar whose gradient is multiplied by minus `strength` on its way back."""

    @staticmethod
    def forward(context: Any, value: Tensor, strength: float) -> Tensor:
        context.strength = strength
        return value.view_as(value)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return -context.strength * gradient, None


def bare_curriculum(auxiliary: nn.Module, teachers: Sequence[nn.Module]) -> BareLoss:
    """As the release has it, in its first epoch: a layer that turns the gradient round."""
    (position,) = auxiliary.parameters()
    strength = (1 - math.cos(math.pi / 10)) / 2

    def loss(seen: Seen) -> Tensor:
        heat = 1 + 20 * torch.sigmoid(Reversed.apply(position, strength))
        soft = F.kl_div(
            torch.log_softmax(seen.student / heat, dim=1),
            torch.softmax(seen.teacher / heat, dim=1),
            reduction="batchmean",
        )
        return 0.9 * heat**2 * soft + 0.1 * F.cross_entropy(seen.student, seen.labels)

    return loss


def bare_teacher_labels(auxiliary: nn.Module, teachers: Sequence[nn.Module]) -> BareLoss:
    return lambda seen: (
        F.cross_entropy(seen.student, seen.teacher.argmax(1)) + F.cross_entropy(seen.student, seen.labels)
    )


def bare_standardised(auxiliary: nn.Module, teachers: Sequence[nn.Module]) -> BareLoss:
    def shape(logits: Tensor) -> Tensor:
        return (logits - logits.mean(1, keepdim=True)) / (logits.std(1, keepdim=True) + 1e-7)

    def loss(seen: Seen) -> Tensor:
        soft = softened(shape(seen.student), shape(seen.teacher), 4)
        return soft + F.cross_entropy(seen.student, seen.labels)

    return loss


def bare_hints(auxiliary: nn.Module, teachers: Sequence[nn.Module]) -> BareLoss:
    """As RepDistiller joins both phases."""
    regressor = nn.Sequential(*own_part(auxiliary, "regressor"))

    def loss(seen: Seen) -> Tensor:
        hint = F.mse_loss(regressor(seen.own["stage2"]), seen.aims["stage2"])
        return F.cross_entropy(seen.student, seen.labels) + 100 * hint

    return loss


def bare_fsp(auxiliary: nn.Module, teachers: Sequence[nn.Module]) -> BareLoss:
    def flow(first: Tensor, second: Tensor) -> Tensor:
        pooled = F.adaptive_max_pool2d(first, second.shape[2:]).flatten(2)
        return torch.bmm(pooled, second.flatten(2).transpose(1, 2)) / pooled.shape[2]

    def loss(seen: Seen) -> Tensor:
        names = ("stem", "stage1", "stage2", "stage3")
        own, aims = ([features[name] for name in names] for features in (seen.own, seen.aims))
        total = torch.zeros(())
        for mine, theirs in zip(pairwise(own), pairwise(aims), strict=True):
            total = total + (flow(*theirs) - flow(*mine)).pow(2).sum(dim=(1, 2)).mean()
        return total

    return loss


def bare_semckd(auxiliary: nn.Module, teachers: Sequence[nn.Module]) -> BareLoss:
    """As the release writes it: one pair of stages after the other, losses and attention collected in tables."""
    soft_and_hard = bare_hinton(auxiliary, teachers)
    queries, keys, projections = (
        list(own_part(auxiliary, name)) for name in ("queries", "keys", "projections")
    )

    def embed(embedding: nn.Module, maps: Tensor) -> Tensor:
        flat = maps.reshape(len(maps), -1)
        hidden = torch.relu(embedding.get_submodule("first")(flat @ flat.t()))
        vector = embedding.get_submodule("second")(hidden)
        return vector / vector.pow(2).sum(1, keepdim=True).sqrt()

    def loss(seen: Seen) -> Tensor:
        own, aims = list(seen.own.values()), list(seen.aims.values())
        query = torch.stack([embed(*pair) for pair in zip(queries, own, strict=True)], dim=1)
        key = torch.stack([embed(*pair) for pair in zip(keys, aims, strict=True)], dim=2)
        attention = torch.softmax(torch.bmm(query, key), dim=-1)
        distances = torch.zeros_like(attention)
        for s, mine in enumerate(own):
            for t, theirs in enumerate(aims):
                if mine.shape[2] > theirs.shape[2]:
                    source, target = F.adaptive_avg_pool2d(mine, theirs.shape[2:]), theirs
                else:
                    source, target = mine, F.adaptive_avg_pool2d(theirs, mine.shape[2:])
                squares = F.mse_loss(projections[s * len(aims) + t](source), target, reduction="none")
                distances[:, s, t] = squares.reshape(len(squares), -1).mean(-1)
        return soft_and_hard(seen) + (attention * distances).sum() / (len(mine) * len(own))

    return loss


def bare_ofd(auxiliary: nn.Module, teachers: Sequence[nn.Module]) -> BareLoss:
    """As the release writes it: a mask times squares, summed."""
    connectors = list(own_part(auxiliary, "connectors"))
    thresholds = [
        margins(teachers[0].get_submodule(f"stage{index}.norm1")).view(1, -1, 1, 1) for index in (1, 2, 3)
    ]

    def loss(seen: Seen) -> Tensor:
        total = F.cross_entropy(seen.student, seen.labels)
        for index, (connector, threshold) in enumerate(zip(connectors, thresholds, strict=True)):
            name = f"stage{index + 1}_pre"
            source, target = connector(seen.own[name]), torch.max(seen.aims[name], threshold)
            squares = F.mse_loss(source, target, reduction="none")
            partial = squares * ((source > target) | (target > 0)).float()
            total = total + 1e-3 * partial.sum() / len(partial) / 2 ** (2 - index)
        return total

    return loss


def bare_triplet(auxiliary: nn.Module, teachers: Sequence[nn.Module]) -> BareLoss:
    def loss(seen: Seen) -> Tensor:
        own, theirs = F.normalize(seen.own["embedding"]), F.normalize(seen.aims["embedding"])
        with torch.no_grad():
            distances = 2 - 2 * own @ own.t()
            is_same = (seen.labels.unsqueeze(1) == seen.labels.unsqueeze(0)).float()
            others = is_same - torch.eye(len(own))
            positives = (distances - 1e6 * (1 - others)).argmax(dim=1)
            negatives = (distances + 1e6 * is_same).argmin(dim=1)
            valid = others.sum(dim=1) > 0
            gaps = (theirs - theirs[negatives]).pow(2).sum(1) - (theirs - theirs[positives]).pow(2).sum(1)
            gaps = torch.relu(gaps[valid])
            wanted = 0.2 + 0.3 * gaps / gaps.max()
        near = (own - own[positives]).pow(2).sum(1)[valid]
        far = (own - own[negatives]).pow(2).sum(1)[valid]
        return torch.relu(near - far + wanted).mean() + F.cross_entropy(seen.student, seen.labels)

    return loss


def bare_triplet_logits(auxiliary: nn.Module, teachers: Sequence[nn.Module]) -> BareLoss:
    def loss(seen: Seen) -> Tensor:
        own, anchors = seen.student, seen.teacher
        with torch.no_grad():
            is_same = seen.labels.unsqueeze(1) == seen.labels.unsqueeze(0)
            negatives = (torch.cdist(anchors, own) + 1e6 * is_same).argmin(dim=1)
        triplet = F.triplet_margin_loss(anchors, own, own[negatives], margin=5.0, eps=0.0)
        return 2 * triplet + softened(own, anchors, 1) + F.cross_entropy(own, seen.labels)

    return loss


def bare_relational(auxiliary: nn.Module, teachers: Sequence[nn.Module]) -> BareLoss:
    """As the release writes it, distances from inner products and angles from differences of embeddings."""

    def relative_distances(vectors: Tensor) -> Tensor:
        squares, products = vectors.pow(2).sum(dim=1), vectors @ vectors.t()
        lengths = (squares.unsqueeze(1) + squares.unsqueeze(0) - 2 * products).clamp(min=1e-12).sqrt().clone()
        lengths[range(len(vectors)), range(len(vectors))] = 0
        return lengths / lengths[lengths > 0].mean()

    def angles(vectors: Tensor) -> Tensor:
        sides = F.normalize(vectors.unsqueeze(0) - vectors.unsqueeze(1), p=2, dim=2)
        return torch.bmm(sides, sides.transpose(1, 2)).view(-1)

    def loss(seen: Seen) -> Tensor:
        own, theirs = seen.own["embedding"], seen.aims["embedding"]
        with torch.no_grad():
            distance_aims, angle_aims = relative_distances(theirs), angles(theirs)
        distance = F.smooth_l1_loss(relative_distances(own), distance_aims)
        angle = F.smooth_l1_loss(angles(own), angle_aims)
        return 25 * distance + 50 * angle + F.cross_entropy(seen.student, seen.labels)

    return loss


def bare_similarity(auxiliary: nn.Module, teachers: Sequence[nn.Module]) -> BareLoss:
    def similarities(vectors: Tensor) -> Tensor:
        return F.normalize(vectors @ vectors.t(), dim=1)

    def loss(seen: Seen) -> Tensor:
        gap = similarities(seen.own["embedding"]) - similarities(seen.aims["embedding"])
        return 3000 * gap.square().mean() + F.cross_entropy(seen.student, seen.labels)

    return loss


def bare_neighbours(auxiliary: nn.Module, teachers: Sequence[nn.Module]) -> BareLoss:
    def neighbours(vectors: Tensor) -> Tensor:
        units = F.normalize(vectors, dim=1)
        alike = (units @ units.t() + 1) / 2
        return alike / alike.sum(dim=1, keepdim=True)

    def loss(seen: Seen) -> Tensor:
        own, aim = neighbours(seen.own["embedding"]), neighbours(seen.aims["embedding"])
        apart = (aim * ((aim + 1e-7) / (own + 1e-7)).log()).mean()
        return 30000 * apart + F.cross_entropy(seen.student, seen.labels)

    return loss


def bare_correlation(auxiliary: nn.Module, teachers: Sequence[nn.Module]) -> BareLoss:
    def kernel(vectors: Tensor) -> Tensor:
        units = F.normalize(vectors, dim=1)
        cosines = units @ units.t()
        return math.exp(-0.8) * (1 + 0.8 * cosines + 0.32 * cosines.square())

    def loss(seen: Seen) -> Tensor:
        gap = kernel(seen.own["embedding"]) - kernel(seen.aims["embedding"])
        return 100 * gap.square().mean() + F.cross_entropy(seen.student, seen.labels)

    return loss


def bare_contrast(auxiliary: nn.Module, teachers: Sequence[nn.Module]) -> BareLoss:
    own_head, aim_head = own_part(auxiliary, "heads")

    def loss(seen: Seen) -> Tensor:
        own = F.normalize(own_head(seen.own["embedding"]), dim=1)
        aim = F.normalize(aim_head(seen.aims["embedding"]), dim=1)
        logits = own @ aim.t() / 0.07
        places = torch.arange(len(logits))
        is_alike = (seen.labels[:, None] == seen.labels) & (places[:, None] != places)
        logits = logits.masked_fill(is_alike, -math.inf)
        both = F.cross_entropy(logits, places) + F.cross_entropy(logits.t(), places)
        return 0.8 * both / 2 + F.cross_entropy(seen.student, seen.labels)

    return loss


def bare_bank(auxiliary: nn.Module, teachers: Sequence[nn.Module]) -> BareLoss:
    """With the draws of the method, or the two would end elsewhere."""
    method, noise = auxiliary.methods[1], 16_384 / len(auxiliary.methods[1].student_bank) + 1e-7
    own_head, aim_head = method.heads
    normalizers: list[Tensor] = []

    def side(vectors: Tensor, bank: Tensor, rows: Tensor, drawn: Tensor, number: int) -> Tensor:
        logits = vectors @ bank.t() / 0.07
        if len(normalizers) == number:
            asked = drawn.scatter_add(1, rows[:, None], torch.ones_like(drawn[:, :1]))
            normalizers.append(((logits.detach().exp() * asked).sum() / asked.sum() * len(bank)).log())
        margins = logits - normalizers[number] - math.log(noise)
        own = margins.gather(1, rows[:, None])
        return (F.softplus(-own).sum() + (drawn * F.softplus(margins)).sum()) / len(rows)

    def loss(seen: Seen) -> Tensor:
        own = F.normalize(own_head(seen.own["embedding"]), dim=1)
        aim = F.normalize(aim_head(seen.aims["embedding"]), dim=1)
        drawn = method.drawn(seen.rows, seen.rows)
        banks = method.student_bank, method.teacher_bank
        total = side(own, banks[1].clone(), seen.rows, drawn, 0)
        total = total + side(aim, banks[0].clone(), seen.rows, drawn, 1)
        with torch.no_grad():
            for bank, vectors in zip(banks, (own, aim), strict=True):
                bank[seen.rows] = F.normalize(bank[seen.rows] / 2 + vectors / 2, dim=1)
            method.batches += 1
        return 0.8 * total + F.cross_entropy(seen.student, seen.labels)

    return loss


def bare_class_attention(auxiliary: nn.Module, teachers: Sequence[nn.Module]) -> BareLoss:
    own_classifier, aim_classifier = auxiliary.methods[1].classifiers

    def class_maps(maps: Tensor, weight: Tensor) -> Tensor:
        return F.normalize(weight @ F.adaptive_avg_pool2d(maps, 2).flatten(2), dim=2)

    def loss(seen: Seen) -> Tensor:
        own = class_maps(seen.own["stage3"], own_classifier.weight)
        aim = class_maps(seen.aims["stage3"], aim_classifier.weight.detach())
        return 400 * (own - aim).square().mean() + F.cross_entropy(seen.student, seen.labels)

    return loss


def bare_regression(auxiliary: nn.Module, teachers: Sequence[nn.Module]) -> BareLoss:
    (classifier,) = auxiliary.methods[1].classifier

    def loss(seen: Seen) -> Tensor:
        own = auxiliary.methods[1].connector(seen.own["stage3"]).mean(dim=(2, 3))
        aim = seen.aims["stage3"].mean(dim=(2, 3))
        with torch.no_grad():
            wanted = classifier(aim)
        judged = F.linear(own, classifier.weight.detach(), classifier.bias.detach())
        parts = F.mse_loss(own, aim) + F.mse_loss(judged, wanted)
        return 100 * parts + F.cross_entropy(seen.student, seen.labels)

    return loss


def bare_review(auxiliary: nn.Module, teachers: Sequence[nn.Module]) -> BareLoss:
    """As the release writes it, from the deepest map up."""
    joins = auxiliary.methods[1].joins

    def distance(own: Tensor, aim: Tensor) -> Tensor:
        total, weights, weight = F.mse_loss(own, aim), 1.0, 1.0
        for places in (4, 2, 1):
            if places < own.shape[2]:
                weight /= 2
                coarse = F.adaptive_avg_pool2d(own, places), F.adaptive_avg_pool2d(aim, places)
                total, weights = total + weight * F.mse_loss(*coarse), weights + weight
        return total / weights

    def loss(seen: Seen) -> Tensor:
        own = [seen.own[name] for name in ("embedding", "stage3", "stage2", "stage1")]
        aims = [seen.aims[name] for name in ("embedding", "stage3", "stage2", "stage1")]
        own[0], aims[0] = own[0][:, :, None, None], aims[0][:, :, None, None]
        total, above = torch.zeros(()), None
        for join, maps, aim in zip(joins, own, aims, strict=True):
            joined = join.inner(maps)
            if above is not None:
                above = F.interpolate(above, size=joined.shape[2:], mode="nearest")
                gates = join.gates(torch.cat([joined, above], dim=1))
                joined = joined * gates[:, :1] + above * gates[:, 1:]
            above = joined
            total = total + distance(join.out(joined), aim)
        return 5 * total + F.cross_entropy(seen.student, seen.labels)

    return loss


def bare_information(auxiliary: nn.Module, teachers: Sequence[nn.Module]) -> BareLoss:
    method = auxiliary.methods[1]

    def loss(seen: Seen) -> Tensor:
        total = F.cross_entropy(seen.student, seen.labels)
        for regress, spread, (own, aim) in zip(
            method.regressors, method.spreads, stage_pairs(seen), strict=True
        ):
            variance = (F.softplus(spread) + 1e-3)[None, :, None, None]
            total = total + ((regress(own) - aim).square() / variance + variance.log()).mean() / 2
        return total

    return loss


def bare_generation(auxiliary: nn.Module, teachers: Sequence[nn.Module]) -> BareLoss:
    method = auxiliary.methods[1]

    def loss(seen: Seen) -> Tensor:
        aligned = method.align(seen.own["stage3"])
        generated = method.generate(aligned * (torch.rand(*aligned.shape[:2], 1, 1) >= 0))
        return 2 * F.mse_loss(generated, seen.aims["stage3"]) + F.cross_entropy(seen.student, seen.labels)

    return loss


def stage_pairs(seen: Seen) -> list[tuple[Tensor, Tensor]]:
    """The maps of each stage, the student's and the teacher's, of equal grids."""
    return [(seen.own[name], seen.aims[name]) for name in seen.own if name.startswith("stage")]


def bare_attention(auxiliary: nn.Module, teachers: Sequence[nn.Module]) -> BareLoss:
    def activity(maps: Tensor) -> Tensor:
        return F.normalize(maps.square().mean(dim=1).flatten(1), dim=1)

    def loss(seen: Seen) -> Tensor:
        gaps = [(activity(own) - activity(aim)).square().mean() for own, aim in stage_pairs(seen)]
        return 1000 * torch.stack(gaps).sum() + F.cross_entropy(seen.student, seen.labels)

    return loss


def bare_selectivity(auxiliary: nn.Module, teachers: Sequence[nn.Module]) -> BareLoss:
    def discrepancy(own: Tensor, aim: Tensor) -> Tensor:
        one, other = (F.normalize(maps.flatten(2), dim=2) for maps in (own, aim))
        if one.shape[2] <= max(one.shape[1], other.shape[1]):
            gap = one.mT @ one / one.shape[1] - other.mT @ other / other.shape[1]
            return gap.square().sum(dim=(1, 2)).mean()
        kernels = [
            (left @ right.mT).square().mean() for left, right in ((one, one), (other, other), (one, other))
        ]
        return kernels[0] + kernels[1] - 2 * kernels[2]

    def loss(seen: Seen) -> Tensor:
        gaps = [discrepancy(own, aim) for own, aim in stage_pairs(seen)]
        return 50 * torch.stack(gaps).sum() + F.cross_entropy(seen.student, seen.labels)

    return loss


def soft_of_members(seen: Seen, weights: Tensor) -> Tensor:
    """Σ_m w_m T² KL(p_m ‖ q) with weights (B, M) or (M,), averaged over the batch."""
    own = torch.log_softmax(seen.student / 4, dim=1).unsqueeze(1)
    soft = torch.softmax(torch.stack(list(seen.teachers), dim=1) / 4, dim=2)
    return 16 * (weights * F.kl_div(own, soft, reduction="none").sum(2)).sum(1).mean()


def bare_ebkd(auxiliary: nn.Module, teachers: Sequence[nn.Module]) -> BareLoss:
    def loss(seen: Seen) -> Tensor:
        logs = torch.log_softmax(torch.stack(list(seen.teachers), dim=1), dim=2)
        entropies = -(logs.exp() * logs).sum(2)
        weights = (1 - entropies / entropies.sum(1, keepdim=True)) / entropies.shape[1]
        return soft_of_members(seen, weights) + F.cross_entropy(seen.student, seen.labels)

    return loss


def confidences(logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """CA-MKD's weights (B, M), divided by M as in the release."""
    errors = torch.stack([F.cross_entropy(each, labels, reduction="none") for each in logits], dim=1)
    return (1 - torch.softmax(errors, dim=1)) / (len(logits) - 1) / len(logits)


def bare_ca_mkd(auxiliary: nn.Module, teachers: Sequence[nn.Module]) -> BareLoss:
    def loss(seen: Seen) -> Tensor:
        soft = soft_of_members(seen, confidences(seen.teachers, seen.labels))
        return soft + F.cross_entropy(seen.student, seen.labels)

    return loss


def bare_ca_mkd_features(auxiliary: nn.Module, teachers: Sequence[nn.Module]) -> BareLoss:
    logits_alone = bare_ca_mkd(auxiliary, teachers)
    regressors = list(own_part(auxiliary, "regressors"))

    def loss(seen: Seen) -> Tensor:
        logits, distances = [], []
        for regress, teacher, theirs in zip(regressors, teachers, seen.members, strict=True):
            projected = regress(seen.own["stage3"])
            logits.append(nn.Sequential(*list(teacher.children())[-3:])(projected))
            distances.append(F.mse_loss(projected, theirs["stage3"], reduction="none").flatten(1).mean(1))
        weights = confidences(logits, seen.labels)
        return logits_alone(seen) + 50 * (weights * torch.stack(distances, dim=1)).sum(1).mean()

    return loss


def bare_ae_kd(auxiliary: nn.Module, teachers: Sequence[nn.Module]) -> BareLoss:
    """Weights by a one-class support vector machine on the gradients, as in the release of CA-MKD."""

    def shares(seen: Seen) -> Tensor:
        own = torch.softmax(seen.student.detach() / 4, dim=1).mean(0)
        gradients = torch.stack(
            [own - torch.softmax(each / 4, dim=1).mean(0) for each in seen.teachers]
        ).double()
        gram = gradients @ gradients.t()
        gram = (gram / gram.diagonal().mean()).numpy()
        machine = OneClassSVM(kernel="precomputed", nu=1 / (0.6 * len(gram)), tol=1e-9).fit(gram)
        weights = torch.zeros(len(gram))
        weights[machine.support_] = torch.from_numpy(machine.dual_coef_[0]).float()
        return weights / weights.sum()

    def loss(seen: Seen) -> Tensor:
        soft = 0.9 * soft_of_members(seen, shares(seen))
        return soft + F.cross_entropy(seen.student, seen.labels)

    return loss


def bare_one(auxiliary: nn.Module, teachers: Sequence[nn.Module]) -> BareLoss:
    def loss(seen: Seen) -> Tensor:
        total = F.cross_entropy(seen.student, seen.labels)
        for branch in seen.own.values():
            total = total + F.cross_entropy(branch, seen.labels) + softened(branch, seen.student.detach(), 3)
        return total

    return loss


def bare_mutual(auxiliary: nn.Module, teachers: Sequence[nn.Module]) -> BareLoss:
    def loss(seen: Seen) -> Tensor:
        total = torch.zeros(())
        for peer in seen.own.values():
            total = total + F.cross_entropy(peer, seen.labels)
        for peer, other in permutations(seen.own.values(), 2):
            total = total + softened(peer, other.detach(), 1) / (len(seen.own) - 1)
        return total

    return loss


def bare_exits(auxiliary: nn.Module, teachers: Sequence[nn.Module]) -> BareLoss:
    def loss(seen: Seen) -> Tensor:
        *values, aim = seen.own.values()
        exits, embeddings = values[: len(values) // 2], values[len(values) // 2 :]
        total = 0.9 * F.cross_entropy(seen.student, seen.labels)
        for own, embedding in zip(exits, embeddings, strict=True):
            total = total + 0.9 * F.cross_entropy(own, seen.labels)
            total = total + 0.1 * softened(own, seen.student.detach(), 3)
            total = total + 0.05 * F.mse_loss(embedding, aim.detach())
        return total

    return loss


def bare_simkd(auxiliary: nn.Module, teachers: Sequence[nn.Module]) -> BareLoss:
    def loss(seen: Seen) -> Tensor:
        (own,), (aim,) = seen.own.values(), seen.members[0].values()
        return F.mse_loss(own, aim)

    return loss
