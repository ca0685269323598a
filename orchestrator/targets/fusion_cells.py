"""Masses of cells: the small problem that is left of a KL fusion (arXiv 1503.02531, section 5.4), in batches.

A cell P holds the classes of an image that lie in the same sets of its A active specialists. Within a cell the
fused q is proportional to its `evidence`; here the cells' masses s are found. With D_m = Σ_{P outside m} s_P, the
mass that q gives to the dustbin of specialist m, one sweep of either direction averages what the models claim for
each cell, a dustbin's claim being spread in proportion to s:

    forward, min Σ_m w_m KL(p^m ‖ A_m q):  the arithmetic mean, which is EM
    reverse, min Σ_m w_m KL(A_m q ‖ p^m):  the geometric mean, which is mirror descent with step 1/W

Sweeps need no step size and never raise the objective J, but tens of them, and thousands where models contradict
one another. At the optimum s depends on one number per specialist only, so Newton's method on A conditions takes
over after the first sweep and needs about five rounds. All is float64, which autocast leaves alone.

Dimensions: b images, K cells, A active specialists that have a dustbin.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from raydistill.errors import StageError

DENSE_SLOTS = 8  # up to so many dustbins every pattern is a cell, whether it has classes or not
BITS = 62  # of a pattern in one integer
MAX_ROUNDS = 500
REACH = 10.0
SMALLEST_MASS = 1e-300
LONGEST_STEP = 2.0  # of log D_m: a step further than this is a guess far outside of what Newton's model knows


@dataclass(frozen=True)
class Cells:
    """What is known of the cells of b images.

    evidence (b, K), 0 in a cell without classes; outside (K, A) or (b, K, A), 1 where a cell is outside a
    specialist's set, else 0; dustbins (b, A), probabilities above 0; weights (b, A) of the specialists, and
    total (b, 1), the weights of all models together.
    """

    evidence: Tensor
    outside: Tensor
    dustbins: Tensor
    weights: Tensor
    total: Tensor

    def outside_masses(self, masses: Tensor) -> Tensor:
        """D_m, (b, A): summed over the complement, as 1 - Σ over the set would cancel."""
        return torch.matmul(masses.unsqueeze(-2), self.outside).squeeze(-2)

    def over_outside(self, values: Tensor) -> Tensor:
        """Σ_{m: P outside m} of values (b, A), (b, K)."""
        return torch.matmul(self.outside, values.unsqueeze(-1)).squeeze(-1)

    def curvature(self, cell_values: Tensor, outside: Tensor) -> Tensor:
        """Σ_P value_P v_P v_Pᵀ, (b, A, A), of cell_values (b, K) and the rows v_P of `outside`."""
        return torch.matmul(outside.mT * cell_values.unsqueeze(-2), outside)

    def start(self) -> Tensor:
        """Masses of the evidence alone, (b, K)."""
        return self.evidence / self.evidence.sum(dim=-1, keepdim=True)

    def solve(self, tolerance: float) -> Tensor:
        """Masses (b, K) that sum to 1, once a round moves none of the images by `tolerance` in L1.

        With at most one dustbin the first sweep is exact. Raises `StageError` if an image does not settle.
        """
        masses = self.sweep(self.start())
        return masses if self.dustbins.shape[-1] < 2 else self.improve(masses, tolerance)

    def sweep(self, masses: Tensor) -> Tensor:
        raise NotImplementedError

    def improve(self, masses: Tensor, tolerance: float) -> Tensor:
        raise NotImplementedError


class ForwardCells(Cells):
    """min Σ w_m KL(p^m ‖ A_m q): evidence is a_P = w_g p^g(P) + Σ_{m ∋ P} w_m p^m(P)."""

    def sweep(self, masses: Tensor) -> Tensor:
        rates = self.weights * self.dustbins / self.outside_masses(masses)
        return (self.evidence + masses * self.over_outside(rates)) / self.total

    def improve(self, masses: Tensor, tolerance: float) -> Tensor:
        """Primal-dual Newton for s_P x_P = a_P and D_m t_m = w_m d_m, where x_P = W - Σ_{m outside P} t_m.

        These are the conditions of an optimum and s, x, D and t are above 0, as in an interior-point method. So a
        step stops short of 0, and its goals are at most ten times off: models that contradict one another make a_P
        and s_P differ by twelve orders of magnitude, where EM crawls and an unguarded step leaves the simplex.
        """
        has_classes = self.evidence > 0
        claims = self.weights * self.dustbins
        rates = claims / self.outside_masses(masses)
        largest = self.over_outside(rates).amax(dim=-1, keepdim=True)
        rates = rates * (0.9 * self.total / largest).clamp(max=1.0)
        for _ in range(MAX_ROUNDS):
            slack = torch.where(has_classes, self.total - self.over_outside(rates), 1.0)
            outside = self.outside_masses(masses)
            cell_goals, is_cell_near = _within_reach(self.evidence, masses * slack)
            rate_goals, is_rate_near = _within_reach(claims, rates * outside)
            matrix = rates.unsqueeze(-1) * self.curvature(masses / slack, self.outside)
            rate_steps = _solve(
                matrix + torch.diag_embed(outside),
                rate_goals - rates * self.outside_masses(cell_goals / slack),
            )
            slack_steps = self.over_outside(rate_steps)
            steps = (cell_goals + masses * slack_steps) / slack - masses
            share, rate_share = _share(masses, steps), _share(rates, rate_steps)
            rate_share = torch.minimum(rate_share, _share(slack, torch.where(has_classes, -slack_steps, 0.0)))
            masses, rates = masses + share * steps, rates + rate_share * rate_steps
            is_whole = is_cell_near & is_rate_near & ((share + rate_share) == 2).squeeze(-1)
            if (is_whole & (steps.abs().sum(dim=-1) < tolerance)).all():
                return masses / masses.sum(dim=-1, keepdim=True)
        raise _unsettled(tolerance)


class ReverseCells(Cells):
    """min Σ w_m KL(A_m q ‖ p^m): evidence is Σ_{c in P} of the geometric mean of p^g_c and p^m_c of m ∋ P."""

    def cell_weights(self) -> Tensor:
        """W_P, (b, K): weights of the models that tell the classes of the cell apart."""
        return self.total - self.over_outside(self.weights)

    def sweep(self, masses: Tensor) -> Tensor:
        logs = masses.clamp(min=SMALLEST_MASS).log()
        claims = self.cell_weights() * (logs - self._log_evidence()) + self.over_outside(
            self._tensions(masses)
        )
        return self._normalise(logs - claims / self.total)

    def improve(self, masses: Tensor, tolerance: float) -> Tensor:
        """Sweeps, each followed by a Newton step where that is at least as good.

        The sweeps' error shrinks by 1 - w_g/W at least, so a sweep on its own must move that much less to be the end.
        """
        lone = self.cell_weights().masked_fill(self.evidence == 0, torch.inf).amin(
            dim=-1
        ) / self.total.squeeze(-1)
        for _ in range(MAX_ROUNDS):
            swept = self.sweep(masses)
            jumped = self.newton(swept)
            is_better = self.objective(jumped) <= self.objective(swept)  # not if NaN
            previous, masses = masses, torch.where(is_better.unsqueeze(-1), jumped, swept)
            moved = (masses - previous).abs().sum(dim=-1)
            if (moved < tolerance * torch.where(is_better, 1.0, lone)).all():
                return masses
        raise _unsettled(tolerance)

    def newton(self, masses: Tensor) -> Tensor:
        """At the optimum log s_P = B_P - (μ + Σ_{m outside P} u_m) / W_P, u_m = w_m log(D_m / d_m): solve for u, μ."""
        tensions, sizes, evidence = self._tensions(masses), self.cell_weights(), self._log_evidence()
        gaps = sizes * (evidence - masses.clamp(min=SMALLEST_MASS).log()) - self.over_outside(tensions)
        shift = (masses * gaps).sum(dim=-1, keepdim=True)
        logs = evidence - (self.over_outside(tensions) + shift) / sizes
        guess = torch.where(self.evidence > 0, logs.exp(), 0.0)
        expected = self.dustbins * (tensions / self.weights).exp()
        residual = torch.cat(
            [self.outside_masses(guess) - expected, guess.sum(dim=-1, keepdim=True) - 1], dim=-1
        )
        with_total = torch.cat([self.outside, torch.ones_like(self.outside[..., :1])], dim=-1)
        own = torch.cat([expected / self.weights, torch.zeros_like(shift)], dim=-1)
        steps = _solve(self.curvature(guess / sizes, with_total) + torch.diag_embed(own), residual)
        longest = LONGEST_STEP * self.weights
        tensions = tensions + torch.maximum(torch.minimum(steps[:, :-1], longest), -longest)
        return self._normalise(evidence - (self.over_outside(tensions) + shift + steps[:, -1:]) / sizes)

    def objective(self, masses: Tensor) -> Tensor:
        logs = masses.clamp(min=SMALLEST_MASS).log() - self._log_evidence()
        outside = self.outside_masses(masses) * self._tensions(masses)
        return (self.cell_weights() * masses * logs).sum(dim=-1) + outside.sum(dim=-1)

    def _tensions(self, masses: Tensor) -> Tensor:
        return self.weights * (self.outside_masses(masses).clamp(min=SMALLEST_MASS) / self.dustbins).log()

    def _log_evidence(self) -> Tensor:
        return torch.where(self.evidence > 0, self.evidence, 1.0).log()

    def _normalise(self, logs: Tensor) -> Tensor:
        return torch.softmax(logs.masked_fill(self.evidence == 0, -torch.inf), dim=-1)


def number_cells(patterns: Tensor, slots: int) -> tuple[Tensor, Tensor]:
    """The cell of each class, (b, C), and where the cells are outside, (K, A) or (b, K, A) float64.

    Bit a % BITS of `patterns` (planes, b, C) in plane a // BITS: the class is in the set of the a-th of A = `slots`.
    """
    shifts = torch.arange(slots, device=patterns.device)
    if slots <= DENSE_SLOTS:
        every = torch.arange(2**slots, device=patterns.device).unsqueeze(1)
        return patterns[0], (1 - (every >> shifts & 1)).double()
    numbers = _rank(patterns[0])
    for plane in patterns[1:]:
        numbers = _rank(numbers * plane.shape[1] + _rank(plane))
    classes = torch.arange(patterns.shape[2], device=patterns.device).expand_as(numbers)
    examples = numbers.new_zeros(len(numbers), int(numbers.max()) + 1).scatter_(1, numbers, classes)
    found = patterns.gather(2, examples.expand(len(patterns), -1, -1))
    bits = found[shifts // BITS] >> (shifts % BITS).view(-1, 1, 1) & 1
    return numbers, (1 - bits).double().permute(1, 2, 0).contiguous()


def _rank(codes: Tensor) -> Tensor:
    """Number the distinct codes of each row from 0, in their order."""
    ordered, places = codes.sort(dim=1)
    steps = torch.zeros_like(codes)
    steps[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    return torch.empty_like(codes).scatter_(1, places, steps.cumsum(dim=1))


def _within_reach(goals: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Goals at most `REACH` times above or below the values, and for which images (b,) none had to change."""
    near = goals.clamp(values / REACH, values * REACH)
    return near, (near == goals).all(dim=-1)


def _share(values: Tensor, steps: Tensor) -> Tensor:
    """How much of the steps can be taken, (b, 1), so that values above 0 keep a hundredth; 1 if all."""
    ratios = torch.where(steps < 0, -steps / values, 0.0).amax(dim=-1, keepdim=True)
    return torch.where(ratios < 0.99, 1.0, 0.99 / ratios)


def _unsettled(tolerance: float) -> StageError:
    return StageError(
        f"fusion did not settle to {tolerance:g} in {MAX_ROUNDS} rounds; is the tolerance too small?"
    )


def _solve(matrices: Tensor, values: Tensor) -> Tensor:
    """Solutions (b, A); a singular matrix gives anything instead of an error."""
    return torch.linalg.solve_ex(matrices, values.unsqueeze(-1)).result.squeeze(-1)
