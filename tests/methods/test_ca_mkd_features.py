"""CA-MKD's feature term: a slow loop in float64, the release's factor and first epoch, and what stays untouched."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raydistill.kinds.committee_methods import CaMkdConfig
from raydistill.methods.ca_mkd import CaMkd
from raydistill.models.build import build_model
from raydistill.models.taps import Tapped
from raydistill.targets.mixing import TeacherTargets
from raydistill.training.data import Batch
from raydistill.training.method import Features, MethodContext

SHAPE, CLASSES = (1, 16, 16), 4
CNN = {"widths": [3, 5], "batch_norm": True}


def network(name: str, **options: Any) -> nn.Module:
    return build_model(name, options, SHAPE, CLASSES)


class Committee:
    """A student, its teachers, and the method between them."""

    def __init__(self, student: nn.Module, *teachers: nn.Module, **options: Any) -> None:
        torch.manual_seed(0)
        self.student = student
        self.teachers = [teacher.eval().requires_grad_(False) for teacher in teachers]
        setting = MethodContext(
            Features(student, SHAPE),
            num_classes=CLASSES,
            batch_size=8,
            teachers=tuple(Features(teacher, SHAPE) for teacher in teachers),
        )
        given = {"method": "ca_mkd", "feature_weight": 50, "logits_only_epochs": 0, **options}
        self.method = CaMkd(CaMkdConfig.model_validate(given), setting)

    def losses(self, inputs: Tensor, labels: Tensor, epoch: int = 0) -> dict[str, Tensor]:
        """What the loop would be told; keeps the features in `own` and `members`."""
        student = Tapped(self.student, self.method.student_features)
        tapped = [Tapped(teacher, self.method.teacher_features) for teacher in self.teachers]
        output = student(inputs)
        with torch.no_grad():
            outputs = [teacher(inputs) for teacher in tapped]
        for model in (student, *tapped):
            model.remove_hooks()
        self.own, self.members = output.features, tuple(found.features for found in outputs)
        for feature in self.own.values():
            feature.retain_grad()
        logits = torch.stack([found.logits for found in outputs], dim=1)
        weights = torch.full(logits.shape[:2], 1 / len(outputs))
        rows = torch.arange(len(inputs))
        batch = Batch(inputs, labels, rows, rows, epoch=epoch)
        return self.method.losses(
            output, TeacherTargets(logits, weights, self.members[0], self.members), batch
        )


@pytest.fixture
def three() -> Committee:
    torch.manual_seed(1)
    teachers = [network("cnn", widths=[4, 6], batch_norm=True) for _ in range(3)]
    return Committee(network("cnn", **CNN), *teachers)


def slow_term(committee: Committee, own: Tensor, labels: Tensor) -> Tensor:
    """Σ_m u_m d_m / M, mean over samples, from features in float64: one number at a time behind the networks."""
    size, count = len(labels), len(committee.teachers)
    total = torch.zeros((), dtype=torch.float64)
    projected = [copy.deepcopy(part).double()(own) for part in committee.method.regressors]
    answers = [
        nn.Sequential(*list(copy.deepcopy(teacher).double())[3:])(found)  # stage1, pool1, stage2 come before
        for teacher, found in zip(committee.teachers, projected, strict=True)
    ]
    for sample in range(size):
        odds = []
        for answer in answers:
            powers = [score.exp() for score in answer[sample]]
            odds.append(sum(powers) / powers[int(labels[sample])])  # exp(CE)
        for member in range(count):
            weight = 1.0 if count == 1 else (1 - odds[member] / sum(odds)) / (count - 1)
            aim = committee.members[member]["stage2"][sample].double().flatten()
            found = projected[member][sample].flatten()
            squares = [(a - b) ** 2 for a, b in zip(found, aim, strict=True)]
            total = total + weight * sum(squares) / len(squares) / count / size
    return total


@pytest.mark.parametrize(("size", "count"), [(2, 1), (2, 3), (5, 2)])
def test_the_term_and_its_gradient_are_those_of_a_loop(
    three: Committee, images: tuple[Tensor, Tensor], size: int, count: int
) -> None:
    committee = Committee(three.student, *three.teachers[:count])
    inputs, labels = images[0][:size], images[1][:size]
    term = committee.losses(inputs, labels)["features"]
    term.backward()
    own = committee.own["stage2"]
    exact = own.detach().double().requires_grad_()
    expected = 50 * slow_term(committee, exact, labels)
    expected.backward()
    torch.testing.assert_close(term.double(), expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(own.grad.double(), exact.grad, rtol=1e-3, atol=1e-6)


def test_the_releases_extra_share_is_taken_out_with_sum_to_one(
    three: Committee, images: tuple[Tensor, Tensor]
) -> None:
    plain = three.losses(*images)["features"]
    whole = Committee(three.student, *three.teachers, sum_to_one=True)
    whole.method.regressors.load_state_dict(three.method.regressors.state_dict())
    torch.testing.assert_close(whole.losses(*images)["features"], 3 * plain)


def test_the_first_epoch_has_no_features_but_every_parameter_has_a_gradient(
    three: Committee, images: tuple[Tensor, Tensor]
) -> None:
    committee = Committee(three.student, *three.teachers, logits_only_epochs=1)
    early = committee.losses(*images)
    assert early["features"].item() == 0
    sum(early.values()).backward()
    assert all(parameter.grad is not None for parameter in committee.method.parameters())
    assert committee.losses(*images, epoch=1)["features"].item() > 0.01


def test_teachers_are_neither_trained_nor_kept_nor_moved(
    three: Committee, images: tuple[Tensor, Tensor]
) -> None:
    before = [copy.deepcopy(teacher.state_dict()) for teacher in three.teachers]
    sum(three.losses(*images).values()).backward()
    assert all(key.startswith("regressors.") for key in three.method.state_dict())
    for teacher, state in zip(three.teachers, before, strict=True):
        assert all(parameter.grad is None for parameter in teacher.parameters())
        assert all(torch.equal(state[key], value) for key, value in teacher.state_dict().items())


def test_a_student_with_its_teachers_features_has_nothing_to_learn(images: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(2)
    model = network("cnn", **CNN)
    committee = Committee(model.eval(), copy.deepcopy(model), copy.deepcopy(model))
    for regressor in committee.method.regressors.eval():
        nn.init.dirac_(regressor[0].weight)
        nn.init.zeros_(regressor[0].bias)
    assert committee.losses(*images)["features"].item() < 1e-6


@pytest.mark.parametrize("student", [[5], [3, 5, 7]], ids=["larger grid", "smaller grid"])
def test_other_grids_and_channels_fit(three: Committee, images: tuple[Tensor, Tensor], student: Any) -> None:
    other = network("cnn", widths=student, batch_norm=True)
    term = Committee(other, *three.teachers).losses(*images)["features"]
    term.backward()
    assert torch.isfinite(term)
    assert all(part.grad is not None for part in next(iter(other.children())).parameters())


def test_half_precision_is_left_before_the_term(three: Committee, images: tuple[Tensor, Tensor]) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        term = three.losses(*images)["features"]
    assert term.dtype == torch.float32
    torch.testing.assert_close(term, three.losses(*images)["features"], rtol=0.05, atol=0)


def test_a_batch_is_learned_by_heart(three: Committee, images: tuple[Tensor, Tensor]) -> None:
    parameters = [*three.student.parameters(), *three.method.parameters()]
    optimizer = torch.optim.Adam(parameters, 0.02)
    first = last = three.losses(*images)["features"].item()
    for _ in range(60):
        optimizer.zero_grad()
        term = three.losses(*images)["features"]
        term.backward()
        optimizer.step()
        last = term.item()
    assert last < first / 5


@pytest.mark.parametrize(
    ("student", "teacher", "options", "message"),
    [
        (("mlp", {"widths": [8]}), ("cnn", CNN), {}, "say which feature is meant with `student_feature`"),
        (("cnn", CNN), ("mlp", {"widths": [8]}), {}, "say which feature is meant with `teacher_feature`"),
        (("cnn", CNN), ("cnn", CNN), {"student_feature": "embedding"}, "or set `feature_weight: 0`"),
        (("cnn", CNN), ("cnn", CNN), {"teacher_feature": "stage2_pre"}, "name the output of one of"),
        (("cnn", CNN), ("cnn", {"widths": [4]}), {"teacher_feature": "stage2"}, "has no feature `stage2`"),
    ],
)
def test_what_does_not_fit_is_told_with_the_way_out(
    student: tuple[str, Any], teacher: tuple[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Committee(network(student[0], **student[1]), network(teacher[0], **teacher[1]), **options)


@pytest.mark.parametrize(
    "name", ["cnn", "lenet5", "resnet8", "wrn_16_1", "vgg8", "mobilenet_v2_half", "shufflenet_v2"]
)
def test_what_lies_behind_a_stage_makes_the_networks_own_logits_of_it(name: str) -> None:
    model = build_model(name, {}, (1, 32, 32), CLASSES).eval()
    stage = Features(model, (1, 32, 32)).stages_unless("any")[-1]
    tapped = Tapped(model, [stage])
    logits, features = tapped(torch.rand(2, 1, 32, 32))
    assert torch.equal(model.behind(stage)(features[stage]), logits)


def test_features_are_asked_for_only_with_a_weight() -> None:
    assert not CaMkdConfig(method="ca_mkd").needs_member_features
    assert CaMkdConfig(method="ca_mkd", feature_weight=50).needs_member_features
