"""DAFL's losses by hand and by loops, and which of them reaches whom."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydistill.kinds.data_free import DistillWithGeneratorConfig
from raydistill.methods.dafl import Dafl, negative_entropy
from raydistill.models.build import build_model
from raydistill.models.taps import Output
from raydistill.training.data import Batch
from raydistill.training.generator import Dreaming, Generator
from raydistill.training.method import Features
from raydistill.training.optimizer import OptimizerPair

CONFIG = DistillWithGeneratorConfig.model_validate(
    {
        "stage": "distill_with_generator",
        "teacher": "teacher",
        "student": {"name": "lenet5"},
        "feature": "0",
        "one_hot_weight": 0.5,
        "entropy_weight": 2.0,
        "activation_weight": 0.25,
    }
)
NO_BATCH = Batch(*[torch.zeros(0)] * 4)


class Given(nn.Module):
    """A teacher whose logits are its inputs, twice as large, and whose feature is the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module("0", nn.Identity())

    def forward(self, inputs: Tensor) -> Tensor:
        return 2 * self.get_submodule("0")(inputs)


def losses(drawn: Tensor, student_logits: Tensor) -> dict[str, Tensor]:
    method = Dafl(CONFIG, Given(), nn.Linear(1, 1))
    return method.losses(Output(student_logits, {"inputs": drawn}), None, NO_BATCH)


@pytest.mark.parametrize("classes", [10, 100])
def test_the_entropy_of_equally_frequent_classes_is_that_of_the_decimal_logarithm(classes: int) -> None:
    assert negative_entropy(torch.zeros(3, classes)).item() == pytest.approx(-math.log10(classes))
    one_each = 200 * torch.eye(classes)
    assert negative_entropy(one_each).item() == pytest.approx(-math.log10(classes), abs=1e-6)
    assert negative_entropy(one_each[:1].expand(5, -1)).item() == pytest.approx(0, abs=1e-6)


def test_sure_answers_cost_nothing() -> None:
    assert losses(100 * torch.eye(3), torch.zeros(3, 3))["one_hot"].item() == 0


def test_a_student_that_agrees_costs_nothing_whatever_is_added_to_its_logits() -> None:
    drawn = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    assert losses(drawn, 2 * drawn + 7)["soft"].item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("shape", [(1, 2), (5, 3), (2, 11)])
def test_losses_and_gradients_are_those_of_loops(shape: tuple[int, int]) -> None:
    draw = torch.Generator().manual_seed(1)
    drawn = torch.randn(shape, generator=draw, requires_grad=True)
    student = torch.randn(shape, generator=draw, requires_grad=True)
    found = losses(drawn, student)
    expected = by_loops(drawn.detach().double(), student.detach().double())
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value, rel=1e-5, abs=1e-6), name
    sum(found.values(), torch.zeros(())).backward()
    for leaf, names, place in (
        (drawn, ("one_hot", "entropy", "activation"), 0),
        (student, ("soft",), 1),
    ):
        for row in range(shape[0]):
            for column in range(shape[1]):
                values = []
                for step in (1e-5, -1e-5):
                    moved = [drawn.detach().double(), student.detach().double()]
                    moved[place] = moved[place].clone()
                    moved[place][row, column] += step
                    values.append(sum(by_loops(*moved)[name] for name in names))
                slope = (values[0] - values[1]) / 2e-5
                assert leaf.grad is not None
                assert leaf.grad[row, column].item() == pytest.approx(slope, rel=1e-3, abs=1e-5)


def by_loops(drawn: Tensor, student: Tensor) -> dict[str, float]:
    count, classes = drawn.shape
    one_hot = soft = activation = 0.0
    mean = [0.0] * classes
    for row in range(count):
        p = softmax([2 * float(value) for value in drawn[row]])
        q = softmax([float(value) for value in student[row]])
        one_hot -= math.log(max(p)) / count
        for label in range(classes):
            soft += p[label] * math.log(p[label] / q[label]) / count
            activation += abs(float(drawn[row, label])) / (count * classes)
            mean[label] += p[label] / count
    return {
        "one_hot": 0.5 * one_hot,
        "entropy": 2.0 * sum(share * math.log10(share) for share in mean),
        "activation": -0.25 * activation,
        "soft": soft,
    }


def softmax(values: list[float]) -> list[float]:
    exponentials = [math.exp(value - max(values)) for value in values]
    return [value / sum(exponentials) for value in exponentials]


def test_the_soft_loss_teaches_the_student_alone_and_the_others_the_generator_alone() -> None:
    torch.manual_seed(0)
    generator = Generator(5, (1, 8, 8))
    student, teacher = (nn.Sequential(nn.Flatten(), nn.Linear(64, 3)) for _ in range(2))
    teacher.requires_grad_(False)
    method = Dafl(CONFIG, teacher, generator)
    found = method.losses(Dreaming(generator, student, 5).train()(torch.zeros(6, 1, 1, 1)), None, NO_BATCH)
    found["soft"].backward(retain_graph=True)
    assert all(parameter.grad is None for parameter in generator.parameters())
    assert all(parameter.grad is not None for parameter in student.parameters())
    student.zero_grad(set_to_none=True)
    (found["one_hot"] + found["entropy"] + found["activation"]).backward()
    assert all(parameter.grad is not None for parameter in generator.parameters())
    assert all(parameter.grad is None for parameter in student.parameters())
    assert not list(method.parameters())


def test_by_default_the_feature_is_what_the_release_takes_the_120_units_of_lenet5() -> None:
    config = CONFIG.replace(feature=None, activation_weight=1.0)
    torch.manual_seed(0)
    teacher, drawn = build_model("lenet5", {}, (1, 28, 28), 10), torch.randn(6, 1, 28, 28)
    found = Dafl(config, teacher, nn.Linear(1, 1)).losses(
        Output(torch.zeros(6, 10), {"inputs": drawn}), None, NO_BATCH
    )
    third = teacher.stage3(teacher.pool2(teacher.stage2(teacher.pool1(teacher.stage1(drawn))))).flatten(1)
    assert third.shape == (6, 120)
    assert found["activation"].item() == pytest.approx(-third.abs().mean().item())


@pytest.mark.parametrize(
    ("name", "units"), [("lenet5", 120), ("lenet5_half", 60), ("resnet8", 64), ("vgg8", 512), ("mlp", 800)]
)
def test_the_feature_of_other_networks_is_what_their_last_layer_reads(name: str, units: int) -> None:
    teacher = build_model(name, {}, (1, 32, 32), 10)
    method = Dafl(CONFIG.replace(feature=None), teacher, nn.Linear(1, 1))
    (shape,) = Features(teacher, (1, 32, 32)).shapes([method.feature])
    assert tuple(shape) == (units,)


def test_the_generator_draws_standardised_channels_and_refuses_odd_sides() -> None:
    torch.manual_seed(0)
    images = Generator(7, (3, 12, 8)).train()(torch.randn(40, 7))
    assert images.shape == (40, 3, 12, 8)
    torch.testing.assert_close(images.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(images.std(dim=(0, 2, 3)), torch.ones(3), atol=1e-2, rtol=0)
    with pytest.raises(ValueError, match="multiples of 4, not 10x8"):
        Generator(7, (3, 10, 8))


def test_in_eval_mode_the_student_answers_to_the_inputs() -> None:
    student = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    inputs = torch.rand(2, 1, 8, 8)
    found = Dreaming(Generator(5, (1, 8, 8)), student, 5).eval()(inputs)
    assert torch.equal(found.logits, student(inputs))


def test_a_pair_of_optimizers_is_the_two_of_them_and_goes_on_from_its_state() -> None:
    def weights() -> list[nn.Parameter]:
        torch.manual_seed(0)
        return [nn.Parameter(torch.randn(3)) for _ in range(2)]

    def of(one: nn.Parameter, two: nn.Parameter) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD([one], 0.1, momentum=0.9), torch.optim.AdamW([two], 0.2)]

    def step(parameters: list[nn.Parameter], optimizers: list[torch.optim.Optimizer]) -> None:
        for optimizer in optimizers:
            optimizer.zero_grad()
        F.mse_loss(parameters[0] * parameters[1], torch.ones(3)).backward()
        for optimizer in optimizers:
            optimizer.step()

    apart, together = weights(), weights()
    two, pair = of(*apart), OptimizerPair(*of(*together))  # type: ignore[arg-type]
    for count in range(6):
        if count == 3:
            state = pair.state_dict()
            pair = OptimizerPair(*of(*together))  # type: ignore[arg-type]
            pair.load_state_dict(state)
        if count == 4:
            two[0].param_groups[0]["lr"] = pair.first.param_groups[0]["lr"] = 0.01
        step(apart, two)
        step(together, [pair])
    assert all(torch.equal(one, other) for one, other in zip(apart, together, strict=True))
