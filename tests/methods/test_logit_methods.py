"""Methods of logits: the values of their releases, and loops in float64."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from raydistill.kinds.method_options import MethodOptions
from raydistill.lookup import load_object
from raydistill.methods.dist import correlation
from raydistill.methods.losses import soft_loss
from raydistill.methods.wsld import sample_weights
from raydistill.models.taps import Output
from raydistill.targets.mixing import TeacherTargets, standardized
from raydistill.training.data import Batch
from raydistill.training.method import Method, MethodContext

METHODS = MethodOptions.choices()
Z = torch.tensor([[1, 2, 3], [0, -1, 2], [0.5, 0.5, -1], [2, 0, 1]])
V = torch.tensor([[3, 1, 0.5], [-1, 0, 4], [1, 2, -1], [0.5, 0.2, 0.1]])
Y = torch.tensor([0, 2, 1, 0])
SHIFTED = ["dkd", "nkd", "dist", "multi_level", "wsld", "teacher_labels"]


def method_of(name: str, /, classes: int = 3, **options: Any) -> Method:
    config = METHODS[name].model_validate({"method": name, **options})
    built: Method = load_object(config.implementation)(config, MethodContext(num_classes=classes))
    return built


def batch_of(labels: Tensor, partners: Tensor | None = None, weights: Tensor | None = None) -> Batch:
    rows = torch.arange(len(labels))
    return Batch(labels.float(), labels, rows, rows, partner_labels=partners, weights=weights)


def terms_of(
    name: str,
    student: Tensor = Z,
    teacher: Tensor = V,
    labels: Tensor = Y,
    batch: Batch | None = None,
    **options: Any,
) -> dict[str, Tensor]:
    teacher = teacher.unsqueeze(1) if teacher.ndim == 2 else teacher
    targets = TeacherTargets(teacher, torch.full(teacher.shape[:2], 1 / teacher.shape[1]))
    method = method_of(name, student.shape[1], **options)
    return method.losses(Output(student, {}), targets, batch or batch_of(labels))


def total(name: str, *tensors: Tensor, **options: Any) -> Tensor:
    return torch.stack(list(terms_of(name, *tensors, **options).values())).sum()


@pytest.mark.parametrize(
    ("rows", "label", "temperature", "target", "other"),
    [
        (slice(1), 0, 1, 1.525228107, 0.272873700),
        (slice(1), 0, 4, 1.676787548, 0.280702393),
        (slice(1), 2, 4, 1.001851370, 1.099310946),
        (slice(4), None, 1, 0.471444464, 0.224054199),
        (slice(4), None, 4, 0.621900025, 0.239674493),
    ],
)
def test_dkd_has_the_values_of_its_release(
    rows: slice, label: int | None, temperature: float, target: float, other: float
) -> None:
    labels = Y if label is None else torch.tensor([label])
    terms = terms_of("dkd", Z[rows], V[rows], labels, temperature=temperature, hard_weight=0)
    assert terms["target"].item() == pytest.approx(target, rel=1e-5)
    assert terms["other"].item() == pytest.approx(8 * other, rel=1e-5)


def test_the_slopes_of_dkd_are_those_of_the_paper() -> None:
    for key, expected in (
        ("target", (-0.850494059, 0.372366285, 0.478127774)),
        ("other", (0.0, -0.373543497, 0.373543497)),
    ):
        student = Z[:1].clone().requires_grad_()
        terms_of("dkd", student, V[:1], Y[:1], other_weight=1, hard_weight=0)[key].backward()
        torch.testing.assert_close(student.grad, torch.tensor([expected]), rtol=1e-4, atol=1e-6)


def test_both_parts_of_dkd_together_are_the_divergence() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = 2 * torch.randn(2, 16, 7, generator=generator)
    for row in range(16):  # (1 - p_y) differs by sample
        pair = student[row : row + 1], teacher[row : row + 1], torch.tensor([row % 7])
        share = 1 - (pair[1] / 3).softmax(1)[0, row % 7].item()
        both = total("dkd", *pair, temperature=3, other_weight=share, hard_weight=0)
        whole = soft_loss(pair[0], TeacherTargets(pair[1].unsqueeze(1), torch.ones(1, 1)), 3)
        torch.testing.assert_close(both, whole, rtol=1e-4, atol=1e-5)


def test_a_sure_student_has_a_finite_dkd() -> None:
    student = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    terms = terms_of("dkd", student, torch.tensor([[205.0, 1.0, 0.0]]), Y[:1], temperature=1, other_weight=1)
    assert terms["other"].item() == pytest.approx(0.110944, rel=1e-4)
    terms["other"].backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_with_two_classes_dkd_and_nkd_have_nothing_to_say_about_others() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 6, 2, generator=generator)
    for name in ("dkd", "nkd"):
        terms = terms_of(name, student, teacher, torch.arange(6) % 2)
        assert terms["other"].item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("temperature", "weight", "cross_entropy"), [(1, 1.5, 1.199437433), (3, 3.5, 22.119089536)]
)
def test_nkd_has_the_values_of_its_release_less_the_teachers_entropy(
    temperature: float, weight: float, cross_entropy: float
) -> None:
    terms = terms_of("nkd", temperature=temperature, other_weight=weight, hard_weight=0)
    assert terms["label"].item() == pytest.approx(0.718979598, rel=1e-5)
    entropy = 0.0
    for row, label in zip(V.double(), Y, strict=True):
        rest = torch.stack([value for index, value in enumerate(row) if index != label]) / temperature
        entropy -= float((rest.softmax(0) * rest.log_softmax(0)).sum()) / 4
    released = terms["other"].item() + weight * temperature**2 * entropy
    assert released == pytest.approx(cross_entropy, rel=1e-5)


@pytest.mark.parametrize(
    ("temperature", "rows", "columns"), [(1, 0.524466992, 0.534996527), (4, 9.108627234, 8.046671249)]
)
def test_dist_has_the_values_of_its_release(temperature: float, rows: float, columns: float) -> None:
    terms = terms_of("dist", temperature=temperature, soft_weight=1, hard_weight=0)
    assert terms["rows"].item() == pytest.approx(rows, rel=1e-4)
    assert terms["columns"].item() == pytest.approx(columns, rel=1e-4)


def test_correlations_are_those_of_a_loop_and_see_neither_scale_nor_place() -> None:
    one = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]])
    other = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.6, 0.2], [0.2, 0.2, 0.6]])
    for dim, apart in ((1, 0.010566619), (0, 0.050519305)):
        found = correlation(one, other, dim)
        slow = [
            float(torch.corrcoef(torch.stack((a, b)).double())[0, 1])
            for a, b in zip(one.unbind(1 - dim), other.unbind(1 - dim), strict=True)
        ]
        torch.testing.assert_close(found, torch.tensor(slow))
        assert (1 - found).mean().item() == pytest.approx(apart, rel=1e-4)
        torch.testing.assert_close(correlation(one, 3 * other + 1, dim), found)
        torch.testing.assert_close(correlation(one, -other, dim), -found)


def test_a_single_sample_has_no_correlation_over_samples() -> None:
    student = Z[:1].clone().requires_grad_()
    terms = terms_of("dist", student, V[:1], Y[:1], temperature=1, soft_weight=1, hard_weight=0)
    assert terms["rows"].item() == pytest.approx(1.743415173, rel=1e-5)
    assert terms["columns"].item() == 1
    terms["columns"].backward()
    assert student.grad is not None
    assert not student.grad.any()


@pytest.mark.parametrize(
    ("temperatures", "batch", "classes"),
    [
        ((1,), 0.183122643, 0.110305304),
        ((4,), 0.003880575, 0.007220969),
        ((2, 3, 4, 5, 6), 0.057791732, 0.068684027),
    ],
)
def test_mlkd_has_the_values_of_its_release(
    temperatures: tuple[float, ...], batch: float, classes: float
) -> None:
    terms = terms_of("multi_level", temperatures=temperatures, soft_weight=1, hard_weight=0)
    assert terms["batch"].item() == pytest.approx(batch, rel=1e-5)
    assert terms["class"].item() == pytest.approx(classes, rel=1e-5)
    if len(temperatures) > 1:
        assert terms["instance"].item() == pytest.approx(3.615701372, rel=1e-5)


def test_mlkd_by_hand_and_by_loops() -> None:
    """Against a student without an opinion, two sure and different answers are 4 · ¼ / 2 apart."""
    sure = torch.tensor([[1000.0, 0], [0, 1000]])
    by_hand = terms_of("multi_level", torch.zeros(2, 2), sure, torch.tensor([0, 1]), temperatures=[1])
    assert by_hand["batch"].item() == pytest.approx(0.9 * 0.5)
    generator = torch.Generator().manual_seed(0)
    student, teacher = 2 * torch.randn(2, 6, 5, generator=generator)
    labels = torch.arange(6) % 5
    terms = terms_of("multi_level", student, teacher, labels, temperatures=[3], soft_weight=1, batch_weight=2)
    q, p = ((logits.double() / 3).softmax(1).tolist() for logits in (student, teacher))

    def apart(one: list[list[float]], other: list[list[float]]) -> float:
        return sum(
            (sum(map(math.prod, zip(a, b, strict=True))) - sum(map(math.prod, zip(c, d, strict=True)))) ** 2
            for a, c in zip(one, other, strict=True)
            for b, d in zip(one, other, strict=True)
        )

    columns = [list(map(list, zip(*rows, strict=True))) for rows in (p, q)]
    assert terms["batch"].item() == pytest.approx(2 * apart(p, q) / 6, rel=1e-4)
    assert terms["class"].item() == pytest.approx(apart(*columns) / 5, rel=1e-4)


def test_mlkd_of_one_temperature_and_single_samples_is_hinton() -> None:
    alone = {"temperatures": [4], "batch_weight": 0, "class_weight": 0}
    torch.testing.assert_close(total("multi_level", **alone), total("hinton"))


def test_mlkd_compares_samples_whatever_the_classes_and_classes_whatever_the_order_of_samples() -> None:
    plain, order = terms_of("multi_level", hard_weight=0), torch.tensor([2, 0, 3, 1])
    moved = terms_of("multi_level", Z[order], V[order], hard_weight=0)
    for key, value in plain.items():
        torch.testing.assert_close(moved[key], value)


def test_wsld_weighs_samples_as_its_release_does() -> None:
    logs = Z.log_softmax(1), V.log_softmax(1)
    weights = sample_weights(*logs, batch_of(Y))
    torch.testing.assert_close(weights, torch.tensor([0.999995156, 0.998955122, 0.898640060, 0.370693254]))
    for heat, weight, expected in ((2, 2.5, 1.564581153), (4, 2.25, 1.560592045)):
        found = total("wsld", temperature=heat, soft_weight=weight, hard_weight=0)
        assert found.item() == pytest.approx(expected, rel=1e-5)
    level = sample_weights(logs[0], logs[0], batch_of(Y))
    torch.testing.assert_close(level, torch.full((4,), 1 - 1 / math.e))


def test_the_weights_of_wsld_have_no_slope() -> None:
    student = Z.clone().requires_grad_()
    total("wsld", student, hard_weight=0).backward()
    weights = sample_weights(Z.log_softmax(1), V.log_softmax(1), batch_of(Y))
    slope = 2.5 * 2 / 4 * weights.unsqueeze(1) * ((Z / 2).softmax(1) - (V / 2).softmax(1))
    torch.testing.assert_close(student.grad, slope)


def test_teacher_labels_are_what_most_say_together() -> None:
    assert total("teacher_labels").item() == pytest.approx(F.cross_entropy(Z, V.argmax(1)).item())
    assert torch.equal(total("teacher_labels", Z, 7 * V), total("teacher_labels"))
    members = torch.tensor([[[3.0, 0, 0], [0, 0.1, 0]]])  # the first is sure, and has more of the mean
    assert total("teacher_labels", Z[:1], members, Y[:1]).item() == pytest.approx(2.407606, rel=1e-5)


@pytest.mark.parametrize("name", SHIFTED)
def test_a_constant_added_to_all_logits_changes_nothing(name: str) -> None:
    plain = terms_of(name)
    moved = terms_of(name, Z + torch.tensor([[3.0], [-1], [0], [20]]), V - 2)
    assert {key: value.item() for key, value in moved.items()} == pytest.approx(
        {key: value.item() for key, value in plain.items()}, rel=1e-4, abs=1e-5
    )


@pytest.mark.parametrize("name", SHIFTED)
def test_the_names_of_classes_do_not_matter(name: str) -> None:
    order = torch.tensor([2, 0, 1])
    places = torch.argsort(order)
    moved = total(name, Z[:, order], V[:, order], places[Y])
    assert moved.item() == pytest.approx(total(name).item(), rel=1e-5)


@pytest.mark.parametrize("name", ["dkd", "nkd", "wsld"])
def test_under_mixup_both_labels_count_in_proportion(name: str) -> None:
    partners = torch.tensor([1, 2, 0, 2])
    ends = [terms_of(name, labels=labels) for labels in (Y, partners)]
    for share in (0.0, 1.0):
        batch = batch_of(Y, partners, torch.full((4,), share))
        found = terms_of(name, batch=batch)
        for key, value in found.items():
            torch.testing.assert_close(value, ends[int(1 - share)][key])
    if name != "wsld":  # whose weight is a function of the mixed cross-entropies
        half = terms_of(name, batch=batch_of(Y, partners, torch.full((4,), 0.5)))
        for key, value in half.items():
            torch.testing.assert_close(value, (ends[0][key] + ends[1][key]) / 2)


@pytest.mark.parametrize("name", ["dkd", "dist", "multi_level", "wsld"])
def test_a_student_that_is_its_teacher_has_nothing_to_learn(name: str) -> None:
    student = V.clone().requires_grad_()
    found = total(name, student, V, hard_weight=0)
    found.backward()
    assert found.item() == pytest.approx(0, abs=1e-5)
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-5


@pytest.mark.parametrize(
    ("temperature", "first", "whole"), [(2, 1.345668540, 0.396133958), (4, 1.338323477, 0.403932054)]
)
def test_standardised_logits_have_the_values_of_their_release(
    temperature: float, first: float, whole: float
) -> None:
    options = {"temperature": temperature, "standardize": True, "soft_weight": 1, "hard_weight": 0}
    assert total("hinton", Z[:1], V[:1], Y[:1], **options).item() == pytest.approx(first, rel=1e-5)
    assert total("hinton", **options).item() == pytest.approx(whole, rel=1e-5)


def test_dkd_of_standardised_logits() -> None:
    terms = terms_of("dkd", temperature=2, standardize=True, hard_weight=0)
    assert terms["target"].item() == pytest.approx(0.319414274, rel=1e-5)
    assert terms["other"].item() == pytest.approx(8 * 0.165002486, rel=1e-5)


def test_what_is_standardised_teaches_no_scale() -> None:
    options = {"temperature": 2.0, "standardize": True, "hard_weight": 0}
    assert total("hinton", 3 * V + 5, V, **options).item() == pytest.approx(0, abs=1e-6)
    student = Z.clone().requires_grad_()
    total("hinton", student, **options).backward()
    assert student.grad is not None
    for direction in (torch.ones_like(Z), Z - Z.mean(1, keepdim=True)):
        assert (student.grad * direction).sum(1).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("classes", "most", "at_two"), [(3, 1.1547, 0.543), (10, 2.8460, 0.351), (100, 9.9, 0.6)]
)
def test_no_standardised_target_is_surer_than_its_classes_allow(
    classes: int, most: float, at_two: float
) -> None:
    one_hot = standardized(torch.eye(classes)[:1] * 50)
    assert one_hot.max().item() == pytest.approx(most, rel=1e-4)
    assert (one_hot / 2).softmax(1).max().item() == pytest.approx(at_two, abs=1e-3)
    assert torch.equal(standardized(torch.full((2, classes), 3.0)), torch.zeros(2, classes))


def test_several_teachers_are_standardised_as_their_mean_unless_they_are_weighed_one_by_one() -> None:
    members = torch.stack((V, 10 * Z), dim=1)
    options = {"temperature": 2.0, "standardize": True, "soft_weight": 1, "hard_weight": 0}
    mean = total("hinton", Z, (V + 10 * Z) / 2, **options)
    torch.testing.assert_close(total("hinton", Z, members, **options), mean)
    weighed = total("ae_kd", Z, members, cap=0.5, **options)  # both count alike
    apart = (total("hinton", Z, V, **options) + total("hinton", Z, 10 * Z, **options)) / 2
    torch.testing.assert_close(weighed, apart)


def test_options_that_leave_nothing_are_refused() -> None:
    for name, keys in (
        ("dkd", ("target_weight", "other_weight")),
        ("dist", ("row_weight", "column_weight")),
        ("multi_level", ("instance_weight", "batch_weight", "class_weight")),
    ):
        with pytest.raises(ValidationError, match="nothing to compare"):
            METHODS[name].model_validate({"method": name, **dict.fromkeys(keys, 0)})
    with pytest.raises(ValueError, match="leave `standardize` out"):
        method_of("hinton", 2, standardize=True)
