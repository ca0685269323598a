"""AE-KD (Du et al., "Agree to disagree", NeurIPS 2020): the shortest convex combination of the teachers' gradients."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from raydistill.kinds.committee_methods import AeKdConfig
from raydistill.methods.adaptive_weights import AdaptiveWeights
from raydistill.targets.mixing import tempered
from raydistill.tasks.devices import to_device
from raydistill.training.data import Batch

RIDGE = 1e-10  # of the mean squared norm: makes the minimum unique, and equal where teachers agree
TOLERANCE = 1e-10  # of the mean squared norm
ROUNDS = 50  # per teacher, where two or three are the rule; whatever is reached within the bounds is usable

Floats = NDArray[np.float64]


class AeKd(AdaptiveWeights):
    """One weight per teacher for the whole batch, from the gradients in the student's logits."""

    config: AeKdConfig
    waits_for_device = (
        True  # the weights are found on the host: some dozens of numbers, in a loop of unknown length
    )

    def weights(self, student_logits: Tensor, teacher_logits: Tensor, batch: Batch) -> Tensor:
        config = self.config
        gradients = mean_gradients(student_logits, teacher_logits, config.temperature).double().cpu().numpy()
        weigh = normalized_weights if config.normalize else capped_weights
        found = weigh(gradients, config.cap)
        weights = to_device(torch.from_numpy(found).to(student_logits.dtype), student_logits.device)
        return weights.expand(len(student_logits), -1)


def mean_gradients(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """g_m = T · mean over the batch of q^T - p_m^T, (M, C): the gradient of T² KL(p_m^T ‖ q^T) in the logits."""
    student = F.softmax(tempered(student_logits, temperature), dim=-1).mean(dim=0)
    return temperature * (student - F.softmax(tempered(teacher_logits, temperature), dim=-1).mean(dim=0))


def normalized_weights(gradients: Floats, cap: float) -> Floats:
    """The weights of gradients of unit length, divided by the lengths and scaled to sum to 1 again."""
    lengths = np.linalg.norm(gradients, axis=1)
    lengths[lengths == 0] = 1
    weights = capped_weights(gradients / lengths[:, None], cap) / lengths
    return weights / weights.sum()


def capped_weights(gradients: Floats, cap: float) -> Floats:
    """α (M,) that minimises ‖Σ_m α_m g_m‖² with Σ α_m = 1 and 0 ≤ α_m ≤ cap, for g (M, C) in float64.

    A cap below 1/M counts as 1/M. By a primal active-set method: minimise over the weights that are free, stop at the
    first bound on the way, and let go of a bound where the gradient points inwards. At least one weight stays free, so
    that Σ α_m = 1 never contradicts the bounds; the lowest index goes first (Bland), against going round in circles.
    """
    count = len(gradients)
    gram = gradients @ gradients.T
    weights, is_free = np.full(count, 1 / count), np.ones(count, dtype=bool)
    size = np.trace(gram) / count
    if size == 0 or cap * count <= 1:
        return weights
    gram = gram / size + RIDGE * np.eye(count)
    for _ in range(ROUNDS * count):
        step = _step_of_free(gram, weights, is_free)
        room = np.where(step > 0, cap - weights, weights)
        reach = np.divide(room, np.abs(step), out=np.full(count, np.inf), where=step != 0)
        blocking = int(reach.argmin())
        if reach[blocking] < 1:
            weights = weights + reach[blocking] * step
            weights[blocking] = cap if step[blocking] > 0 else 0.0
            is_free[blocking] = False
            continue
        weights = weights + step
        slope = gram @ weights
        level = slope[is_free].mean()
        is_wrong = ~is_free & np.where(weights > 0, slope > level + TOLERANCE, slope < level - TOLERANCE)
        if not is_wrong.any():
            break
        is_free[is_wrong.argmax()] = True
    return weights


def _step_of_free(gram: Floats, weights: Floats, is_free: NDArray[np.bool_]) -> Floats:
    """From the weights to the minimum over the free ones with the same sum, (M,), 0 for the others."""
    free = np.flatnonzero(is_free)
    if len(free) == 1:
        return np.zeros(len(gram))
    slope = (gram @ weights)[free]
    system = np.ones((len(free) + 1, len(free) + 1))
    system[:-1, :-1], system[-1, -1] = gram[np.ix_(free, free)], 0.0
    step = np.zeros(len(gram))
    step[free] = np.linalg.solve(system, np.append(-slope, 0.0))[:-1]
    return step
