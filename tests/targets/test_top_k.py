"""Targets of which only some classes are stored: against float64 sums over all classes, and against dense stores."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from raydistill.errors import StageError, StoreError
from raydistill.methods.losses import soft_loss
from raydistill.targets.combine import EntropyWeights, combine
from raydistill.targets.mixing import TeacherTargets, tempered_probabilities
from raydistill.targets.reader import Targets, open_targets
from raydistill.targets.store import Description, TargetWriter, load_manifest
from raydistill.targets.top_k import TEMPERATURES, TopK, TopKRows, log_tail
from raydistill.targets.verify import compare_rows

Describe = Callable[..., Description]
Draw = Callable[..., Tensor]

WORKED_EXAMPLE = torch.tensor([[4.0, 3.0, 1.0, 0.0, -1.0, -2.0]])  # methods.md, 5.2
ITS_STUDENT = torch.tensor([[1.0, 2.0, 0.0, 1.0, 0.0, 0.0]])


@pytest.fixture
def keep(root: Path, describe: Describe) -> Callable[..., Targets]:
    """Store `top_k` classes of each row of logits (views, rows, C) or (rows, C), and open the store."""

    def write(
        name: str, logits: Tensor, top_k: int | None, *, rows_per_shard: int = 64, **changes: object
    ) -> Targets:
        views, (rows, classes) = (len(logits) if logits.ndim == 3 else 0), logits.shape[-2:]
        description = describe(num_classes=classes, rows=rows, views=views, **changes)
        folder = root / "stages" / name
        writer = TargetWriter(folder, description, top_k=top_k, rows_per_shard=rows_per_shard)
        for view in logits.reshape(-1, rows, classes):
            for block in torch.arange(rows).split(4):
                writer.append(block, view[block])
        writer.close()
        return open_targets(folder, root=root, expect=None)

    return write


def draw(rows: int, classes: int, deviation: float = 3.0, seed: int = 0) -> Tensor:
    return deviation * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed))


def target_of(targets: Targets, temperature: float, view: int = 0) -> Tensor:
    """The tempered mean (rows, C) that a loss sees."""
    rows = torch.arange(targets.description.rows)
    return tempered_probabilities(targets.read(rows, view, temperature=temperature), temperature)


def uniform_tail(logits: Tensor, top_k: int, temperature: float) -> Tensor:
    """Float64: the probabilities of the largest logits, and what is left in equal parts for the others."""
    exact = torch.softmax(logits.double() / temperature, dim=-1)
    classes = logits.topk(top_k, dim=-1).indices
    kept = exact.gather(1, classes)
    others = logits.shape[1] - top_k
    rest = (1 - kept.sum(dim=1, keepdim=True)) / max(others, 1)
    return rest.expand(logits.shape).scatter(1, classes, kept)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_kept_classes_and_the_tails_mass_are_the_teachers_at_the_stored_temperatures(
    temperature: float, keep: Callable[..., Targets]
) -> None:
    logits = draw(20, 1000)
    found = target_of(keep("a", logits, 10), temperature).double()
    expected = uniform_tail(logits, 10, temperature)
    # A kept log-probability below 16 is off by up to 2^-8 / 2; the tail's mass moves only as far as these move the sum.
    torch.testing.assert_close(found, expected, rtol=2**-8 / temperature, atol=0)


def test_the_tails_mass_is_not_the_guess_from_one_temperature(keep: Callable[..., Targets]) -> None:
    """Re-tempering the mass at T = 1 gives too much (methods.md, 5.3): 0.05 more at T = 2, 0.01 more at T = 4."""
    logits = draw(60, 1000)
    targets = keep("a", logits, 10)
    rest = 1 - torch.softmax(logits.double(), dim=1).topk(10, dim=1).values.sum(dim=1)
    for temperature, excess in ((2.0, 0.05), (4.0, 0.01)):
        exact = torch.softmax(logits.double() / temperature, dim=1)
        kept, own = exact.topk(10, dim=1)
        mass = 1 - kept.sum(dim=1)
        found = 1 - target_of(targets, temperature).double().gather(1, own).sum(dim=1)
        assert (found - mass).abs().max() < 1e-3
        tail = 990 * (rest / 990) ** (1 / temperature)
        head = torch.softmax(logits.double(), dim=1).topk(10, dim=1).values.pow(1 / temperature).sum(dim=1)
        assert (tail / (tail + head) - mass).mean() > excess


@pytest.mark.parametrize("temperature", [1.0, 1.5, 3.0, 4.0, 20.0, 1e4])
@pytest.mark.parametrize("top_k", [1, 7, 49, 50])
def test_targets_sum_to_one(temperature: float, top_k: int, keep: Callable[..., Targets]) -> None:
    sums = target_of(keep("a", draw(9, 50, 6), top_k), temperature).double().sum(dim=1)
    torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 1.7, 4.0, 100.0])
def test_keeping_every_class_is_the_dense_store_up_to_its_rounding(
    temperature: float, keep: Callable[..., Targets]
) -> None:
    logits = draw(23, 40)
    everything, dense = keep("a", logits, 40), keep("b", logits, None)
    # Both round to float16, the one log-probabilities of up to 32 nats, the other logits of up to 16.
    torch.testing.assert_close(
        target_of(everything, temperature), target_of(dense, temperature), rtol=2**-6 / temperature, atol=0
    )


def test_a_tail_that_is_uniform_costs_nothing(keep: Callable[..., Targets]) -> None:
    logits = torch.full((6, 30), -1.0).scatter_(1, torch.arange(6).unsqueeze(1), 3.0)
    logits[:, 20] = 2.0
    targets = keep("a", logits, 2)
    for temperature in (1.0, 1.3, 5.0, 30.0):
        expected = torch.softmax(logits / temperature, dim=1)
        # With equal logits R_T is a straight line in 1/T, which the interpolation meets.
        torch.testing.assert_close(target_of(targets, temperature), expected, rtol=2e-3, atol=0)


def test_the_worked_example_gives_the_published_gradient_on_the_kept_classes(
    keep: Callable[..., Targets],
) -> None:
    targets = keep("a", WORKED_EXAMPLE, 2)
    student = ITS_STUDENT.clone().requires_grad_()
    soft_loss(student, targets.read(torch.tensor([0])), 1.0).backward()
    assert student.grad is not None
    assert student.grad[0, :2].tolist() == pytest.approx([-0.52018, 0.21235], abs=2e-4)
    tail = target_of(targets, 1.0)[0, 2:]
    assert tail.sum().item() == pytest.approx(0.0535, abs=1e-4)
    assert torch.equal(tail, tail[:1].expand(4))


def test_the_worked_examples_loss_lies_between_the_coarse_and_the_true_one_but_for_the_tails_entropy(
    keep: Callable[..., Targets],
) -> None:
    """KL(true) = 0.737459, of which 0.707539 are between the groups. A uniform tail changes only what is inside."""
    read = keep("a", WORKED_EXAMPLE, 2).read(torch.tensor([0]))
    p, q = torch.softmax(WORKED_EXAMPLE.double(), 1)[0], torch.softmax(ITS_STUDENT.double(), 1)[0]
    assert (p * (p / q).log()).sum().item() == pytest.approx(0.737459, abs=1e-6)
    inside = p[2:].sum() * sum(0.25 * math.log(0.25 / share) for share in (q[2:] / q[2:].sum()).tolist())
    assert soft_loss(ITS_STUDENT, read, 1.0).item() == pytest.approx(0.707539 + inside.item(), abs=1e-4)


def stored(form: TopK, logits: Tensor) -> TopKRows:
    """What a store gives back, its rounding included."""
    return form.unpack(form.pack(form.keep(logits)))


def exact_tail(logits: Tensor, kept: TopKRows, temperature: float) -> Tensor:
    """R_T in float64 of the classes that are not kept."""
    rest = torch.log_softmax(logits.double(), dim=1).scatter(1, kept.classes, -torch.inf)
    return torch.logsumexp(rest / temperature, dim=1)


ANY_TEMPERATURE = [*torch.linspace(1, 4, 61).tolist(), *torch.logspace(0.7, 4, 60).tolist()]


@pytest.mark.parametrize(
    ("deviation", "kept", "largest"),
    [(1.0, 10, 2e-4), (3.0, 10, 5e-4), (8.0, 10, 1e-3), (3.0, 1, 5e-4), (3.0, 100, 5e-4), (20.0, 10, 2e-2)],
)
def test_between_the_stored_temperatures_the_tail_is_off_by_little(
    deviation: float, kept: int, largest: float
) -> None:
    """Relative error of the tail's mass at any temperature from 1 to 10,000, of 100 rows of 1000 classes."""
    form, logits = TopK(kept=kept), draw(100, 1000, deviation)
    rows = stored(form, logits)
    for temperature in ANY_TEMPERATURE:
        found = log_tail(rows, form.temperatures, temperature, 1000 - kept)
        assert (found.double() - exact_tail(logits, rows, temperature)).expm1().abs().max() < largest


def test_a_sure_teachers_tail_is_off_by_little() -> None:
    form, logits = TopK(kept=10), draw(100, 1000, 2.0)
    logits[torch.arange(100), torch.arange(100)] += 20
    rows = stored(form, logits)
    for temperature in ANY_TEMPERATURE:
        found = log_tail(rows, form.temperatures, temperature, 990)
        assert (found.double() - exact_tail(logits, rows, temperature)).expm1().abs().max() < 5e-4


def test_the_stored_slopes_are_those_of_the_log_partition() -> None:
    """By differences of float64 sums; at 1/T = 0 the slope is the mean of the tail's log-probabilities."""
    form, logits = TopK(kept=5), draw(20, 100)
    rows, step = form.keep(logits), 1e-5
    for index, temperature in enumerate(TEMPERATURES):
        low, high = (exact_tail(logits, rows, 1 / (1 / temperature + side)) for side in (-step, step))
        torch.testing.assert_close(
            rows.slopes[:, index].double(), (high - low) / (2 * step), rtol=1e-4, atol=0
        )
    rest = torch.log_softmax(logits.double(), dim=1)
    rest = rest.scatter(1, rows.classes, 0).sum(dim=1) / 95
    torch.testing.assert_close(rows.slopes[:, -1].double(), rest, rtol=1e-5, atol=0)


@pytest.mark.parametrize("deviation", [0.1, 3.0, 12.0, 60.0])
def test_the_interpolated_tail_rises_with_the_temperature_and_meets_its_ends(deviation: float) -> None:
    form, logits = TopK(kept=5), draw(50, 200, deviation)
    rows = stored(form, logits)
    steps = torch.logspace(0, 5, 400).tolist()
    found = torch.stack([log_tail(rows, form.temperatures, step, 195) for step in steps])
    assert (found.diff(dim=0) >= -1e-5).all()
    for index, temperature in enumerate(TEMPERATURES):
        near = log_tail(rows, form.temperatures, temperature * (1 + 1e-6), 195)
        torch.testing.assert_close(near, rows.tails[:, index], rtol=1e-4, atol=1e-3)
    assert found[-1].tolist() == pytest.approx([math.log(195)] * 50, abs=0.01)


def test_a_class_above_32767_is_found_again(keep: Callable[..., Targets]) -> None:
    logits = torch.zeros(3, 65_536)
    for row, label in enumerate((32_767, 40_000, 65_535)):
        logits[row, label], logits[row, label - 1] = 20.0, 15.0
    targets = keep("a", logits, 2)
    assert target_of(targets, 1.0).argmax(dim=1).tolist() == [32_767, 40_000, 65_535]
    assert targets.kept(torch.arange(3)).classes.tolist() == [
        [32_767, 32_766],
        [40_000, 39_999],
        [65_535, 65_534],
    ]


@pytest.mark.parametrize("top_k", [1, 10, 100])
def test_a_row_takes_the_bytes_that_are_promised(
    top_k: int, root: Path, keep: Callable[..., Targets]
) -> None:
    """4 k + 50, and 12 for the sample's id and the view; with whole multiples of 64 bytes nothing is padded."""
    logits, size = draw(128, 150), {}
    for rows in (64, 128):
        keep(str(rows), logits[:rows], top_k, rows_per_shard=rows)
        (shard,) = load_manifest(root / "stages" / str(rows)).shards
        size[rows] = (root / "stages" / str(rows) / shard.file).stat().st_size
    assert size[128] - size[64] == 64 * (4 * top_k + 50 + 12)
    assert size[64] < 64 * (4 * top_k + 50 + 12) + 1500


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("cut", [0, 5, 6, 25, 45])
def test_a_store_cut_anywhere_resumes_to_the_same_bytes(cut: int, root: Path, describe: Describe) -> None:
    description, logits, ids = describe(views=2, num_classes=30), draw(46, 30), torch.arange(23) * 3

    def write(folder: Path, stop: int) -> TargetWriter:
        writer = TargetWriter(folder, description, top_k=4, rows_per_shard=6)
        for block in torch.arange(writer.rows_done, stop).split(5):
            writer.append(ids[block % 23], logits[block])
        return writer

    write(root / "whole", 46).close()
    write(root / "cut", cut)
    assert not (root / "cut/manifest.json").exists()
    assert TargetWriter(root / "cut", description, top_k=4, rows_per_shard=6).rows_done == cut // 6 * 6
    write(root / "cut", 46).close()
    assert contents(root / "cut") == contents(root / "whole")


def test_another_number_of_kept_classes_trusts_no_shard(root: Path, describe: Describe) -> None:
    description = describe(num_classes=30)
    writer = TargetWriter(root / "a", description, top_k=4, rows_per_shard=6)
    writer.append(torch.arange(12), draw(12, 30))
    assert TargetWriter(root / "a", description, top_k=5, rows_per_shard=6).rows_done == 0
    assert TargetWriter(root / "a", description, top_k=4, rows_per_shard=6).rows_done == 12


def test_a_damaged_shard_is_named(root: Path, keep: Callable[..., Targets]) -> None:
    keep("a", draw(23, 30), 4, rows_per_shard=6)
    path = root / "stages/a/top_4-00002.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"top_4-00002\.arrow` is damaged"):
        open_targets(root / "stages/a", root=root, expect=None)


def test_every_view_is_read_as_it_was_written(keep: Callable[..., Targets]) -> None:
    logits = draw(46, 30).reshape(2, 23, 30)
    targets = keep("a", logits, 4)
    for view in range(2):
        torch.testing.assert_close(
            target_of(targets, 2.0, view).double(), uniform_tail(logits[view], 4, 2.0), rtol=2**-8, atol=0
        )


def test_a_mixture_is_the_mean_of_uniform_tails_and_may_have_a_dense_member(
    root: Path, keep: Callable[..., Targets]
) -> None:
    logits = [draw(23, 30, seed=seed) for seed in range(3)]
    sizes = {"a": 4, "b": 9, "c": None}
    for (name, top_k), own in zip(sizes.items(), logits, strict=True):
        keep(name, own, top_k, teachers=(name,))
    metrics = combine(
        root / "stages/mix", [root / "stages" / name for name in sizes], root=root, weights=[1, 2, 5]
    )
    targets = open_targets(root / "stages/mix", root=root, expect=None)
    for temperature in (1.0, 4.0):
        expected = sum(
            weight / 8 * uniform_tail(own, top_k or 30, temperature)
            for weight, own, top_k in zip((1, 2, 5), logits, sizes.values(), strict=True)
        )
        torch.testing.assert_close(target_of(targets, temperature).double(), expected, rtol=2**-7, atol=0)
    assert metrics["targets/weight/2"] == pytest.approx(5 / 8)
    assert not list((root / "stages/mix").glob("*.arrow"))


@pytest.mark.parametrize("options", [{"rule": "geometric"}, {"weights": EntropyWeights()}])
def test_what_looks_at_all_classes_is_refused(
    options: dict[str, object], root: Path, keep: Callable[..., Targets]
) -> None:
    keep("a", draw(23, 30), 4)
    keep("b", draw(23, 30), None, teachers=("b",))
    folders = [root / "stages/a", root / "stages/b"]
    with pytest.raises(StageError, match="keep 4 of 30 classes"):
        combine(root / "stages/mix", folders, root=root, **options)  # type: ignore[arg-type]


def test_a_temperature_below_one_is_refused(keep: Callable[..., Targets]) -> None:
    targets = keep("a", draw(6, 30), 4)
    with pytest.raises(StoreError, match=r"from 1 up, not 0\.5"):
        targets.read(torch.arange(6), temperature=0.5)


def test_more_classes_than_there_are_and_more_than_can_be_numbered_are_refused(
    root: Path, describe: Describe
) -> None:
    with pytest.raises(StageError, match="6 of 5 classes"):
        TargetWriter(root / "a", describe(), top_k=6)
    with pytest.raises(StageError, match="at most 65536 classes, not 65537"):
        TargetWriter(root / "a", describe(num_classes=65_537), top_k=6)


@pytest.mark.parametrize(
    ("value", "message"),
    [(math.nan, "the logit nan"), (math.inf, "the logit inf"), (-math.inf, "the logit -inf")],
)
def test_a_teacher_that_gives_no_number_is_named_with_its_sample(
    value: float, message: str, root: Path, ids: Tensor, describe: Describe
) -> None:
    logits = draw(4, 5)
    logits[2, 3] = value
    with pytest.raises(StageError, match=rf"`cafe01` gave {message} for sample {int(ids[2])} in view 0: not"):
        TargetWriter(root / "a", describe(), top_k=2).append(ids[:4], logits)


def test_a_kept_log_probability_that_float16_cannot_hold_is_named(root: Path, describe: Describe) -> None:
    logits = torch.tensor([[50_000.0, -50_000, 0, 0, 0], [70_000, 69_999, 0, 0, 0]])
    TargetWriter(root / "a", describe(), top_k=2).append(
        torch.arange(1), logits[1:]
    )  # only differences matter
    with pytest.raises(StageError, match="log-probability -100000 for sample 0 in view 0: it does not fit"):
        TargetWriter(root / "b", describe(), top_k=5).append(torch.arange(2), logits)


@pytest.mark.parametrize("top_k", [1, 4, 30])
def test_verifying_passes_what_was_stored_and_a_little_noise(
    top_k: int, keep: Callable[..., Targets]
) -> None:
    logits, rows = draw(23, 30), torch.tensor([20, 3, 11])
    targets = keep("a", logits, top_k)
    assert compare_rows(targets, rows, 0, logits[rows], slack=1e-6).passed
    noise = 0.5e-3 * logits[rows].abs().amax(dim=1, keepdim=True) * draw(3, 30, 1.0, seed=1).clamp(-1, 1)
    assert compare_rows(targets, rows, 0, logits[rows] + noise).passed


@pytest.mark.parametrize("place", ["kept", "tail", "order"])
def test_verifying_finds_another_teacher_in_a_kept_class_in_the_tail_and_in_the_order(
    place: str, keep: Callable[..., Targets]
) -> None:
    logits, rows = draw(23, 30), torch.tensor([20, 3, 11])
    targets = keep("a", logits, 4)
    now, order = logits[rows].clone(), logits[rows].argsort(dim=1, descending=True)
    changed = order[1, {"kept": 0, "tail": 4, "order": 29}[place]]
    now[1, changed] = {"kept": now[1, changed] + 0.2, "tail": now[1, changed] - 3, "order": now[1].max()}[
        place
    ]
    result = compare_rows(targets, rows, 0, now)
    assert not result.passed
    assert result.worst_sample_id == 3
    assert not compare_rows(targets, rows, 0, torch.full_like(now, math.nan)).passed


def test_a_student_learns_the_same_from_every_class_kept_as_from_dense_targets(
    keep: Callable[..., Targets],
) -> None:
    """A linear student, 60 steps of plain gradient descent from the same start."""
    inputs, teacher = draw(48, 12, 1.0, seed=1), draw(12, 20, 1.0, seed=2)
    stores = [keep(name, inputs @ teacher, top_k) for name, top_k in (("a", 20), ("b", None))]

    def learn(targets: Targets) -> Tensor:
        weights = torch.zeros(12, 20, requires_grad=True)
        read: TeacherTargets = targets.read(torch.arange(48), temperature=4.0)
        for _ in range(60):
            (gradient,) = torch.autograd.grad(soft_loss(inputs @ weights, read, 4.0), weights)
            weights = (weights - 0.1 * gradient).detach().requires_grad_()
        return inputs @ weights

    kept, dense = (learn(targets) for targets in stores)
    assert F.mse_loss(dense, torch.zeros_like(dense)) > 0.5  # it learned something
    torch.testing.assert_close(kept, dense, rtol=0, atol=5e-3)


def test_a_runner_up_far_above_the_rest_of_the_tail_does_not_make_it_fall() -> None:
    """R_T flattens so fast towards T = 1 that a parabola's slope there would point the other way."""
    form, logits = TopK(kept=1), torch.full((1, 1000), -15.0)
    logits[0, :2] = torch.tensor([0.1, 0.0])
    rows = stored(form, logits)
    found = torch.cat([log_tail(rows, TEMPERATURES, step, 999) for step in torch.linspace(1, 2, 60).tolist()])
    assert (found.diff() >= 0).all()
