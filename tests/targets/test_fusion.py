"""KL fusion against closed forms, gradient descent, plain EM, and invariances."""

import math
import runpy
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from raydistill.errors import StageError
from raydistill.targets.fusion import Direction, fuse, fuse_partial
from raydistill.targets.membership import Head, Membership, active_specialists, build_membership

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "fusion.py"
DIRECTIONS: tuple[Direction, ...] = ("forward", "reverse")
GENERALIST = (0.4, 0.3, 0.2, 0.1)
both_directions = pytest.mark.parametrize("direction", DIRECTIONS)


class Problem(NamedTuple):
    """Arguments of `fuse`."""

    generalist: Tensor
    specialists: list[Tensor]
    active: Tensor
    membership: Membership


def logs(*probabilities: float) -> Tensor:
    return torch.tensor([probabilities], dtype=torch.float64).log()


def one_image(
    *specialists: tuple[list[int], Sequence[float]], heads: Sequence[Head] | None = None
) -> Problem:
    """The generalist of the worked examples and, all active, specialists given by their classes and their answer."""
    membership = build_membership([classes for classes, _ in specialists], 4, heads)
    answers = [logs(*answer) for _, answer in specialists]
    return Problem(logs(*GENERALIST), answers, torch.ones(1, len(specialists), dtype=torch.bool), membership)


def random_problem(
    images: int = 12,
    classes: int = 30,
    specialists: int = 5,
    *,
    seed: int = 0,
    width: float = 2.0,
    share: float = 0.6,
    heads: Sequence[Head] | None = None,
) -> Problem:
    """Models that know nothing of one another, `width` nats wide; a `share` of all pairs is active."""
    generator = torch.Generator().manual_seed(seed)
    sets = [
        torch.randperm(classes, generator=generator)[: 1 + (7 * index + 3) % (classes - 1)].tolist()
        for index in range(specialists)
    ]
    membership = build_membership(sets, classes, heads)
    active = torch.rand(images, specialists, generator=generator) < share

    def draw(rows: int, columns: int) -> Tensor:
        return torch.log_softmax(width * torch.randn(rows, columns, generator=generator).double(), dim=1)

    answers = [draw(int(active[:, index].sum()), membership.columns(index)) for index in range(specialists)]
    return Problem(draw(images, classes), answers, active, membership)


def answer_to(problem: Problem, image: int, specialist: int) -> Tensor:
    """Probabilities (columns,)."""
    return problem.specialists[specialist][int(problem.active[:image, specialist].sum())].exp()


def groups_of(membership: Membership, specialist: int) -> list[list[int]]:
    """The classes behind each of the specialist's outputs."""
    if membership.heads[specialist] == "full":
        return [[label] for label in range(membership.num_classes)]
    classes = membership.class_sets[specialist].tolist()
    others = sorted(set(range(membership.num_classes)) - set(classes))
    return [[label] for label in classes] + [others]


def slow_responsibilities(problem: Problem, image: int, q: Tensor) -> list[Tensor]:
    """r^m (C,) of the generalist and of the active specialists, one group after the other."""
    found = [problem.generalist[image].exp()]
    for specialist in problem.active[image].nonzero().flatten().tolist():
        spread = torch.zeros_like(q)
        answer = answer_to(problem, image, specialist)
        for share, group in zip(answer, groups_of(problem.membership, specialist), strict=True):
            spread[group] = share * q[group] / q[group].sum()
        found.append(spread)
    return found


def slow_objective(
    problem: Problem,
    image: int,
    q: Tensor,
    direction: Direction = "forward",
    weights: Sequence[float] | None = None,
) -> float:
    """J(q) in nats: the weighted sum of the divergences that the image's models see, one after the other."""

    def divergence(teacher: Tensor, seen: Tensor) -> float:
        first, second = (teacher, seen) if direction == "forward" else (seen, teacher)
        return float((torch.xlogy(first, first) - torch.xlogy(first, second)).sum())  # 0 log 0 is 0

    weights = (1.0,) * (len(problem.specialists) + 1) if weights is None else weights
    total = weights[0] * divergence(problem.generalist[image].exp(), q)
    for specialist in problem.active[image].nonzero().flatten().tolist():
        seen = torch.stack([q[group].sum() for group in groups_of(problem.membership, specialist)])
        total += weights[specialist + 1] * divergence(answer_to(problem, image, specialist), seen)
    return total


def slow_objectives(
    log_q: Tensor,
    problem: Problem,
    direction: Direction = "forward",
    weights: Sequence[float] | None = None,
) -> Tensor:
    """J of every image (B,)."""
    rows = log_q.double().exp()
    return torch.tensor(
        [slow_objective(problem, image, q, direction, weights) for image, q in enumerate(rows)],
        dtype=torch.float64,
    )


def near(log_q: Tensor, expected: Sequence[float], digits: int = 7) -> bool:
    return torch.allclose(
        log_q.exp()[0], torch.tensor(expected, dtype=torch.float64), rtol=0, atol=0.6 * 10**-digits
    )


def same(first: Tensor, second: Tensor, within: float = 1e-6) -> bool:
    """Every image's q agrees in L1."""
    return bool(((first.double().exp() - second.double().exp()).abs().sum(dim=-1) < within).all())


def test_one_specialist_gives_the_published_value() -> None:
    problem = one_image(([0, 1], (0.6, 0.1, 0.3)))
    log_q = fuse(*problem)
    assert near(log_q, (0.5, 0.2, 0.2, 0.1), 12)
    assert slow_objective(problem, 0, log_q[0].exp()) == pytest.approx(0.0724603, abs=6e-8)


def test_two_disjoint_specialists_give_the_published_value() -> None:
    problem = one_image(([0, 1], (0.6, 0.1, 0.3)), ([2], (0.5, 0.5)))
    log_q = fuse(*problem)
    assert near(log_q, (0.4406732, 0.1762693, 0.3157665, 0.0672910))
    assert slow_objective(problem, 0, log_q[0].exp()) == pytest.approx(0.1972, abs=1e-7)
    rest_per_evidence = 0.1 / log_q.exp()[0, 3].item()
    assert rest_per_evidence == pytest.approx(1.4860831, abs=1e-6)


def test_nested_specialists_give_the_published_value() -> None:
    assert near(fuse(*one_image(([0], (0.5, 0.5)), ([0, 1], (0.6, 0.1, 0.3)))), (0.5, 0.2, 0.2, 0.1))


def test_one_specialist_in_reverse_is_a_geometric_mean_with_the_rest_as_one() -> None:
    log_q = fuse(*one_image(([0, 1], (0.6, 0.1, 0.3))), direction="reverse")
    inside = math.sqrt(0.4 * 0.6), math.sqrt(0.3 * 0.1)
    rest = math.sqrt(0.3 * 0.3)
    total = sum(inside) + rest
    assert near(log_q, (inside[0] / total, inside[1] / total, rest * 2 / 3 / total, rest / 3 / total), 12)


@both_directions
def test_an_image_without_active_specialists_keeps_the_generalists_answer_exactly(
    direction: Direction,
) -> None:
    problem = random_problem(specialists=2, share=0.5)
    idle = ~problem.active.any(dim=1)
    assert idle.any()
    assert not idle.all()
    assert torch.equal(fuse(*problem, direction=direction)[idle], problem.generalist[idle])
    nobody = torch.zeros_like(problem.active)
    assert torch.equal(fuse(problem.generalist, [None, None], nobody, problem.membership), problem.generalist)


@both_directions
@pytest.mark.parametrize("count", [1, 3, 10])
def test_specialists_that_agree_with_the_generalist_change_nothing(direction: Direction, count: int) -> None:
    problem = random_problem(specialists=count)
    answers = []
    for specialist in range(count):
        p = problem.generalist[problem.active[:, specialist]].exp()
        groups = groups_of(problem.membership, specialist)
        answers.append(torch.stack([p[:, group].sum(dim=1) for group in groups], dim=1).log())
    fused = fuse(problem.generalist, answers, problem.active, problem.membership, direction=direction)
    torch.testing.assert_close(fused, problem.generalist, rtol=0, atol=1e-6)


@pytest.mark.parametrize("heads", [None, ("dustbin", "full", "dustbin", "full", "dustbin")])
@pytest.mark.parametrize("width", [1.0, 4.0])
def test_the_derivative_is_zero_at_the_forward_solution(width: float, heads: Sequence[Head] | None) -> None:
    problem = random_problem(width=width, heads=heads)
    fused = fuse(*problem, tolerance=1e-10).exp()
    for image, q in enumerate(fused):
        responsibilities = slow_responsibilities(problem, image, q)
        torch.testing.assert_close(len(responsibilities) * q, sum(responsibilities), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("heads", [None, ("dustbin", "full", "dustbin", "full", "dustbin")])
def test_the_reverse_solution_is_the_geometric_mean_of_what_the_models_claim(
    heads: Sequence[Head] | None,
) -> None:
    problem = random_problem(heads=heads)
    fused = fuse(*problem, direction="reverse", tolerance=1e-10)
    for image, log_q in enumerate(fused):
        responsibilities = torch.stack(slow_responsibilities(problem, image, log_q.exp()))
        mean = torch.log_softmax(responsibilities.log().mean(dim=0), dim=0)
        torch.testing.assert_close(log_q, mean, rtol=0, atol=1e-7)


def test_plain_em_lowers_the_objective_every_time_and_ends_at_the_fused_answer() -> None:
    problem = random_problem(images=2, specialists=3)
    for image, log_q in enumerate(fuse(*problem)):
        q = problem.generalist[image].exp()
        values = [slow_objective(problem, image, q)]
        for _ in range(60):
            responsibilities = slow_responsibilities(problem, image, q)
            q = torch.stack(responsibilities).mean(dim=0)
            values.append(slow_objective(problem, image, q))
        assert all(after <= before + 1e-12 for before, after in pairwise(values))
        assert same(log_q, q.log())


@both_directions
def test_no_neighbour_has_a_smaller_objective(direction: Direction) -> None:
    problem = random_problem()
    fused = fuse(*problem, direction=direction)
    values = slow_objectives(fused, problem, direction)
    generator = torch.Generator().manual_seed(1)
    for scale in (1e-3, 1e-1, 1.0):
        noise = scale * torch.randn(fused.shape, generator=generator, dtype=torch.float64)
        others = slow_objectives(torch.log_softmax(fused + noise, dim=1), problem, direction)
        assert (others > values).all()


@both_directions
def test_gradient_descent_per_image_ends_at_the_fused_answer(direction: Direction) -> None:
    descend: Callable[..., tuple[Tensor, int]] = runpy.run_path(str(BENCHMARK))["gradient_descent_fusion"]
    problem = random_problem(images=2, classes=8, specialists=3, width=1.0)
    fused = fuse(*problem, direction=direction)
    for image in range(2):
        own = problem.active[image].nonzero().flatten().tolist()
        left = iter(range(1200))
        log_q, _ = descend(
            problem.generalist[image].exp(),
            [problem.membership.class_sets[specialist] for specialist in own],
            [answer_to(problem, image, specialist) for specialist in own],
            is_done=lambda _, left=left: next(left, None) is None,
            direction=direction,
            step=4.0,
        )
        assert same(fused[image], log_q, within=1e-5)


@both_directions
def test_the_order_of_the_specialists_does_not_matter(direction: Direction) -> None:
    problem = random_problem()
    order = [3, 0, 4, 2, 1]
    sets = [problem.membership.class_sets[index].tolist() for index in order]
    shuffled = Problem(
        problem.generalist,
        [problem.specialists[index] for index in order],
        problem.active[:, order],
        build_membership(sets, 30),
    )
    assert same(fuse(*shuffled, direction=direction), fuse(*problem, direction=direction))


@both_directions
def test_a_specialist_given_twice_counts_as_one_of_double_weight(direction: Direction) -> None:
    problem = random_problem()
    sets = [classes.tolist() for classes in problem.membership.class_sets]
    twice = Problem(
        problem.generalist,
        [*problem.specialists, problem.specialists[2]],
        torch.cat([problem.active, problem.active[:, 2:3]], dim=1),
        build_membership([*sets, sets[2]], 30),
    )
    doubled = fuse(*problem, weights=(1, 1, 1, 2, 1, 1), direction=direction)
    assert same(fuse(*twice, direction=direction), doubled)
    assert not same(fuse(*problem, direction=direction), doubled)


@both_directions
def test_weights_count_only_in_relation_to_one_another(direction: Direction) -> None:
    problem = random_problem()
    weights = (0.5, 2.0, 1.0, 0.1, 3.0, 1.0)
    ten_times = [10 * weight for weight in weights]
    assert same(
        fuse(*problem, weights=weights, direction=direction),
        fuse(*problem, weights=ten_times, direction=direction),
    )
    nearly_alone = fuse(*problem, weights=(1e9, 1, 1, 1, 1, 1), direction=direction)
    assert same(nearly_alone, problem.generalist)


@both_directions
@pytest.mark.parametrize("count", [2, 6, 12, 70])
def test_a_batch_gives_what_every_image_gives_alone(direction: Direction, count: int) -> None:
    """12 leave the table of all patterns, 70 the bits of one integer."""
    problem = random_problem(images=6, specialists=count, share=0.95)
    fused = fuse(*problem, direction=direction)
    for image in range(6):
        alone = [
            answer_to(problem, image, specialist).log().unsqueeze(0) if is_active else None
            for specialist, is_active in enumerate(problem.active[image].tolist())
        ]
        only = slice(image, image + 1)
        single = fuse(
            problem.generalist[only], alone, problem.active[only], problem.membership, direction=direction
        )
        assert same(single[0], fused[image])
    assert torch.allclose(fused.exp().sum(dim=1), torch.ones(6).double(), rtol=0, atol=1e-12)


@both_directions
def test_seventy_active_specialists_reach_the_same_answer_as_a_slow_fixed_point(direction: Direction) -> None:
    problem = random_problem(images=1, classes=12, specialists=70, share=1.0, width=0.5)
    log_q = fuse(*problem, direction=direction)[0]
    claims = torch.stack(slow_responsibilities(problem, 0, log_q.exp()))
    mean = claims.mean(dim=0) if direction == "forward" else torch.softmax(claims.log().mean(dim=0), dim=0)
    torch.testing.assert_close(log_q.exp(), mean, rtol=0, atol=1e-8)


@both_directions
@pytest.mark.parametrize("seed", range(4))
def test_models_that_contradict_one_another_by_twenty_nats_still_settle(
    direction: Direction, seed: int
) -> None:
    problem = random_problem(seed=seed, width=20.0, specialists=7)
    weights = tuple(10 ** (index % 3 - 1.0) for index in range(8))
    rough = fuse(*problem, weights=weights, direction=direction)
    fine = fuse(*problem, weights=weights, direction=direction, tolerance=1e-11)
    least = slow_objectives(fine, problem, direction, weights)
    assert (slow_objectives(rough, problem, direction, weights) - least).abs().max() < 1e-5
    assert same(rough, fine, within=1e-4)


def test_a_class_to_which_the_generalist_gives_nothing_gets_what_the_specialist_says() -> None:
    membership = build_membership([[0, 1], [1]], 4)
    active = torch.ones(1, 2, dtype=torch.bool)
    answers = [logs(0.2, 0.6, 0.2), logs(0.7, 0.3)]
    zero = fuse(logs(0.7, 0.0, 0.2, 0.1), answers, active, membership)
    tiny = fuse(logs(0.7 - 1e-11, 1e-11, 0.2, 0.1), answers, active, membership)
    assert zero.exp()[0, 1] > 0.3
    assert same(zero, tiny)
    assert fuse(logs(0.7, 0.0, 0.2, 0.1), answers, active, membership, direction="reverse").isfinite().all()


def test_a_specialist_that_gives_its_dustbin_nothing_is_no_trouble() -> None:
    problem = one_image(([0, 1], (0.7, 0.3, 0.0)), ([1, 2], (0.4, 0.6, 0.0)))
    for direction in DIRECTIONS:
        fused = fuse(*problem, direction=direction)
        assert fused.isfinite().all()
        assert fused.exp().sum().item() == pytest.approx(1)


def test_full_heads_give_the_arithmetic_and_in_reverse_the_geometric_mean() -> None:
    members = ((0.98, 0.005, 0.005, 0.01), (0.3, 0.4, 0.2, 0.1))
    problem = one_image(([0], members[0]), ([1, 2], members[1]), heads=("full", "full"))
    everyone = torch.tensor([GENERALIST, *members], dtype=torch.float64)
    torch.testing.assert_close(fuse(*problem).exp()[0], everyone.mean(dim=0), rtol=1e-6, atol=0)
    geometric = torch.softmax(everyone.log().mean(dim=0), dim=0)
    torch.testing.assert_close(fuse(*problem, direction="reverse").exp()[0], geometric, rtol=1e-6, atol=0)
    weighted = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64) @ everyone
    torch.testing.assert_close(fuse(*problem, weights=(5, 2, 3)).exp()[0], weighted, rtol=1e-6, atol=0)


def test_a_full_head_is_told_from_a_dustbin_of_one_class_by_its_name_not_by_its_width() -> None:
    answer = (0.1, 0.2, 0.3, 0.4)
    full = fuse(*one_image(([1, 2, 3], answer), heads=("full",)))
    dustbin = fuse(*one_image(([1, 2, 3], answer), heads=("dustbin",)))
    assert near(full, (0.25, 0.25, 0.25, 0.25))
    assert near(dustbin, (0.4, 0.2, 0.2, 0.2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_narrow_input_gives_float32_and_the_same_answer_also_under_autocast(dtype: torch.dtype) -> None:
    problem = random_problem()
    narrow = Problem(
        problem.generalist.to(dtype), [answer.to(dtype) for answer in problem.specialists], *problem[2:]
    )
    with torch.autocast("cpu", torch.bfloat16):
        fused = fuse(*narrow)
    assert fused.dtype == torch.float32
    assert same(fused, fuse(*problem), within=1e-5 if dtype == torch.float32 else 2e-2)


def test_the_arguments_stay_as_they_are() -> None:
    problem = random_problem()
    before = [
        problem.generalist.clone(),
        problem.active.clone(),
        *(answer.clone() for answer in problem.specialists),
    ]
    fuse(*problem)
    after = [problem.generalist, problem.active, *problem.specialists]
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_specialists_are_active_where_they_know_one_of_the_most_probable_classes() -> None:
    membership = build_membership([[0, 1], [1, 2], [4]], 5)
    generalist = torch.tensor([[0.5, 0.3, 0.1, 0.06, 0.04], [0.1, 0.06, 0.04, 0.5, 0.3]]).log()
    assert active_specialists(generalist, membership).tolist() == [[True, False, False], [False] * 3]
    assert active_specialists(generalist, membership, 2).tolist() == [
        [True, True, False],
        [False, False, True],
    ]
    assert active_specialists(generalist, membership, 5).all()
    for n in (0, 6):
        with pytest.raises(StageError, match=f"not {n}"):
            active_specialists(generalist, membership, n)


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ([[0], []], "specialist 1 has no classes"),
        ([[0, 4]], "specialist 0 knows class 4, but classes go from 0 to 3"),
        ([[-1]], "specialist 0 knows class -1"),
        ([[0], [2, 1, 2]], "specialist 1 names class 2 twice"),
        ([[3, 2, 1, 0]], "specialist 0 has all 4 classes"),
    ],
)
def test_impossible_class_sets_are_refused(sets: list[list[int]], message: str) -> None:
    with pytest.raises(StageError, match=message):
        build_membership(sets, 4)


def test_parts_that_do_not_fit_together_are_refused() -> None:
    generalist, specialists, active, membership = one_image(([0, 1], (0.6, 0.1, 0.3)), ([2], (0.5, 0.5)))
    with pytest.raises(StageError, match="divide 4 classes"):
        fuse(generalist[:, :3], specialists, active, membership)
    with pytest.raises(StageError, match="`active` has shape"):
        fuse(generalist, specialists, active[:, :1], membership)
    with pytest.raises(StageError, match="1 outputs were given for 2 specialists"):
        fuse(generalist, specialists[:1], active, membership)
    with pytest.raises(StageError, match="specialist 1 is active on 1 images and has 2 outputs"):
        fuse(generalist, [specialists[0], specialists[0]], active, membership)
    with pytest.raises(StageError, match="specialist 1 is active on 1 images"):
        fuse(generalist, [specialists[0], None], active, membership)
    with pytest.raises(StageError, match="2 weights"):
        fuse(generalist, specialists, active, membership, weights=(1, 1))
    with pytest.raises(StageError, match="above 0"):
        fuse(generalist, specialists, active, membership, weights=(1, 0, 1))
    with pytest.raises(StageError, match="one for each"):
        build_membership([[0]], 4, ("full", "full"))


def test_an_answer_that_is_not_a_number_is_named() -> None:
    generalist, specialists, active, membership = one_image(([0, 1], (0.6, 0.1, 0.3)), ([2], (0.5, 0.5)))
    with pytest.raises(StageError, match="the generalist answered"):
        fuse(generalist * torch.nan, specialists, active, membership)
    with pytest.raises(StageError, match="the generalist answered"):
        fuse(generalist - torch.inf, specialists, active, membership)
    with pytest.raises(StageError, match="the generalist answered"):
        fuse(generalist * torch.nan, [None, None], ~active, membership)
    with pytest.raises(StageError, match="specialist 1 answered"):
        fuse(generalist, [specialists[0], specialists[1] * torch.nan], active, membership)


def test_fifteen_thousand_classes_need_no_tensor_of_images_by_specialists_by_classes() -> None:
    draw = runpy.run_path(str(BENCHMARK))["draw_problem"]
    images, classes = 24, 15_000
    problem = draw(images, classes, [300] * 61, 3)
    largest = LargestTensor()
    with largest:
        fused = fuse(*problem)
    assert largest.elements <= 2 * images * classes
    assert same(fused, torch.log_softmax(fused.double(), dim=1), within=1e-4)
    assert (slow_objectives(fused, problem) <= slow_objectives(problem.generalist, problem)).all()


class LargestTensor(torch.overrides.TorchFunctionMode):
    """Counts the elements of the largest tensor that any call returns."""

    elements = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.elements = max(self.elements, result.untyped_storage().nbytes() // result.element_size())
        return result


KNOWN: tuple[list[int] | None, ...] = ([0, 1, 2, 3], [2, 3, 4], None, [5])


def seen_by(q: Tensor, classes: list[int] | None) -> Tensor:
    """A q (B, C): the known classes of q, and last the sum of all others."""
    if classes is None:
        return q
    rest = [label for label in range(q.shape[1]) if label not in classes]
    return torch.cat([q[:, classes], q[:, rest].sum(dim=1, keepdim=True)], dim=1)


@pytest.mark.parametrize("known", [KNOWN, KNOWN[:2] + KNOWN[3:], KNOWN[1:3]], ids=str)
def test_teachers_of_parts_are_fused_as_gradient_descent_fuses_them(
    known: Sequence[list[int] | None],
) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = 2 * torch.randn(5, len(known), 6, generator=generator, dtype=torch.float64)
    weights = [0.2 + 0.3 * teacher for teacher in range(len(known))]
    taught = [seen_by(logits[:, teacher].softmax(dim=1), classes) for teacher, classes in enumerate(known)]
    free = torch.zeros(5, 6, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([free], max_iter=500, tolerance_grad=1e-11, tolerance_change=1e-16)

    def divergence() -> Tensor:
        q = free.softmax(dim=1)
        parts = zip(weights, taught, known, strict=True)
        return torch.stack([w * (p * (p / seen_by(q, classes)).log()).sum() for w, p, classes in parts]).sum()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = divergence()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    for _ in range(5):
        optimizer.step(closure)  # type: ignore[arg-type]
    fused = fuse_partial(logits, known, weights)
    torch.testing.assert_close(fused.exp(), free.detach().softmax(dim=1), rtol=0, atol=1e-5)


def test_two_halves_of_a_distribution_are_the_whole_of_it_however_a_dustbin_is_spread() -> None:
    whole = torch.randn(7, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64).softmax(dim=1)
    halves = whole.unsqueeze(1).repeat(1, 2, 1)
    halves[:, 0, 3:] = whole[:, 3:].sum(dim=1, keepdim=True) / 3
    halves[:, 1, :3] = whole[:, :3].sum(dim=1, keepdim=True) * torch.tensor([0.7, 0.2, 0.1])
    fused = fuse_partial(halves.log(), [[0, 1, 2], [3, 4, 5]])
    torch.testing.assert_close(fused.exp(), whole, rtol=0, atol=1e-5)


def test_classes_that_no_teacher_knows_share_evenly_what_is_left() -> None:
    logits = torch.tensor([0.3, 0.1, 0.5, 0.1, 0.0, 0.0]).clamp(min=1e-9).log().expand(1, 2, 6)
    fused = fuse_partial(logits, [[0, 1], [0, 1]])
    torch.testing.assert_close(
        fused.exp()[0].float(), torch.tensor([0.3, 0.1, 0.15, 0.15, 0.15, 0.15]), rtol=0, atol=1e-5
    )
