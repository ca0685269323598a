"""SemCKD against loops in float64, the bounds of its attention, and batches of every size."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydistill.kinds.feature_methods import SemckdConfig
from raydistill.kinds.method_options import MethodOptions
from raydistill.kinds.methods import HintonConfig
from raydistill.methods.combined import Combined
from raydistill.methods.semckd import Semckd
from raydistill.models.taps import Output
from raydistill.targets.mixing import TeacherTargets
from raydistill.training.data import Batch
from raydistill.training.method import Features, Method, MethodContext

STUDENT = {"name": "cnn", "widths": [4, 6]}
TEACHER = {"name": "cnn", "widths": [3, 5, 6], "batch_norm": True}


class Maps(nn.Module):
    """A model whose stages are convolutions to the channels and sizes that are asked for."""

    def __init__(self, shapes: dict[str, tuple[int, int, int]]) -> None:
        super().__init__()
        self.feature_paths = {name: name for name in shapes}
        for name, (channels, height, width) in shapes.items():
            pool = nn.AdaptiveAvgPool2d((height, width))
            self.add_module(name, nn.Sequential(nn.Conv2d(1, channels, 1), pool, nn.ReLU()))

    def forward(self, inputs: Tensor) -> Tensor:
        for name in self.feature_paths:
            last = self.get_submodule(name)(inputs)
        return last.mean(dim=(2, 3))


class Case:
    """A method for stages of any shape, and random features of `batch` samples where it was built for `full`."""

    def __init__(
        self, own: list[tuple[int, int, int]], aims: list[tuple[int, int, int]], full: int, batch: int
    ) -> None:
        torch.manual_seed(full + batch)
        shapes = [{f"stage{i}": shape for i, shape in enumerate(part, start=1)} for part in (own, aims)]
        student, teacher = (Features(Maps(part), (1, 12, 12)) for part in shapes)
        self.method = Semckd(
            SemckdConfig(method="semckd"), MethodContext(student, teacher, num_classes=4, batch_size=full)
        )
        self.own = {name: torch.randn(batch, *shape, requires_grad=True) for name, shape in shapes[0].items()}
        self.aims = {
            name: torch.randn(batch, *shape, requires_grad=True) for name, shape in shapes[1].items()
        }
        self.batch = batch

    def loss(self) -> Tensor:
        logits = torch.zeros(self.batch, 4)
        targets = TeacherTargets(logits.unsqueeze(1), torch.ones(self.batch, 1), self.aims)
        ids = torch.arange(self.batch)
        losses = self.method.losses(Output(logits, self.own), targets, Batch(logits, ids, ids, ids))
        assert list(losses) == ["semantic"]
        return losses["semantic"]

    def leaves(self) -> dict[str, Tensor]:
        """All that a gradient should reach."""
        return dict(self.method.named_parameters()) | self.own


def slow_loss(leaves: dict[str, Tensor], own: list[Tensor], aims: list[Tensor], full: int) -> Tensor:
    """The release's formulas in float64, sample by sample and stage by stage; missing samples are zeros."""
    batch, total = len(own[0]), torch.zeros((), dtype=torch.float64)

    def embedded(kind: str, index: int, maps: Tensor, n: int) -> Tensor:
        row = [torch.zeros((), dtype=torch.float64)] * full
        for other in range(batch):
            row[other] = torch.dot(maps[n].reshape(-1), maps[other].reshape(-1))
        prefix = f"{kind}.{index}"
        hidden = leaves[f"{prefix}.first.weight"] @ torch.stack(row) + leaves[f"{prefix}.first.bias"]
        vector = leaves[f"{prefix}.second.weight"] @ hidden.clamp(min=0) + leaves[f"{prefix}.second.bias"]
        return vector / (vector**2).sum().sqrt()

    def normed(maps: Tensor, prefix: str) -> Tensor:
        weight, bias = leaves[f"{prefix}.weight"], leaves[f"{prefix}.bias"]
        channels = []
        for c in range(maps.shape[1]):
            values = maps[:, c]
            centred = values - values.mean()
            channels.append(centred / ((centred**2).mean() + 1e-5).sqrt() * weight[c] + bias[c])
        return torch.stack(channels, dim=1)

    for s, mine in enumerate(own):
        energies = [
            [
                torch.dot(embedded("queries", s, mine, n), embedded("keys", t, theirs, n))
                for t, theirs in enumerate(aims)
            ]
            for n in range(batch)
        ]
        for t, theirs in enumerate(aims):
            prefix = f"projections.{s * len(aims) + t}"
            source, target = mine, theirs
            if mine.shape[2] > theirs.shape[2]:
                source = F.adaptive_avg_pool2d(mine, theirs.shape[2:])
            else:
                target = F.adaptive_avg_pool2d(theirs, mine.shape[2:])
            values = normed(F.conv2d(source, leaves[f"{prefix}.0.weight"]), f"{prefix}.1").clamp(min=0)
            values = F.conv2d(values, leaves[f"{prefix}.3.weight"], padding=1)
            values = F.conv2d(normed(values, f"{prefix}.4").clamp(min=0), leaves[f"{prefix}.6.weight"])
            for n in range(batch):
                share = energies[n][t].exp() / sum(energy.exp() for energy in energies[n])
                total = total + share * ((values[n] - target[n]) ** 2).mean()
    return total / (batch * len(own))


SQUARE = [(2, 6, 6), (3, 3, 3)]
OTHERS = [(4, 5, 5), (2, 3, 3), (3, 2, 2)]


@pytest.mark.parametrize(
    ("own", "aims", "full", "batch"),
    [
        (SQUARE, OTHERS, 8, 8),
        (OTHERS, SQUARE, 12, 12),
        (SQUARE, OTHERS, 8, 5),
        (OTHERS, [(2, 4, 4)], 9, 1),
        ([(2, 4, 4)], OTHERS, 4, 3),
    ],
)
def test_loss_and_gradients_are_those_of_loops_in_float64(
    own: list[tuple[int, int, int]], aims: list[tuple[int, int, int]], full: int, batch: int
) -> None:
    case = Case(own, aims, full, batch)
    case.loss().backward()
    slow = {name: leaf.detach().double().requires_grad_() for name, leaf in case.leaves().items()}
    expected = slow_loss(
        slow,
        [slow[name] for name in case.own],
        [aim.detach().double() for aim in case.aims.values()],
        full,
    )
    expected.backward()
    torch.testing.assert_close(case.loss().double(), expected, rtol=1e-5, atol=1e-6)
    for name, leaf in case.leaves().items():
        assert leaf.grad is not None, name
        torch.testing.assert_close(leaf.grad.double(), slow[name].grad, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize(("full", "batch"), [(4, 4), (8, 8), (8, 7), (8, 2), (8, 1), (33, 32)])
def test_a_batch_of_any_size_gives_every_parameter_a_finite_gradient(full: int, batch: int) -> None:
    case = Case(SQUARE, OTHERS, full, batch)
    loss = case.loss()
    loss.backward()
    assert loss.isfinite()
    for name, leaf in case.leaves().items():
        assert leaf.grad is not None, name
        assert leaf.grad.isfinite().all(), name


def test_a_short_batch_is_embedded_by_the_first_columns() -> None:
    case = Case(SQUARE, OTHERS, 8, 5)
    embed, rows = case.method.queries[0], torch.randn(5, 5)
    hidden = F.relu(rows @ embed.first.weight[:, :5].T + embed.first.bias)
    vectors = hidden @ embed.second.weight.T + embed.second.bias
    torch.testing.assert_close(embed(rows), vectors / vectors.norm(dim=1, keepdim=True))


@pytest.mark.parametrize(
    ("stages", "low", "high"),
    [(1, 1.0, 1.0), (2, 0.119203, 0.880797), (3, 0.063379, 0.786987), (4, 0.043165, 0.711235)],
)
def test_attention_is_a_distribution_over_the_teachers_stages_within_its_bounds(
    stages: int, low: float, high: float
) -> None:
    case = Case(SQUARE, [(2, 3, 3)] * stages, 16, 16)
    for parameter in case.method.parameters():
        parameter.data.mul_(20)
    attention = case.method.attention(list(case.own.values()), list(case.aims.values()))
    assert attention.shape == (16, 2, stages)
    torch.testing.assert_close(attention.sum(dim=2), torch.ones(16, 2))
    assert attention.min() >= low - 1e-6
    assert attention.max() <= high + 1e-6


@pytest.mark.parametrize("stages", [2, 3, 4])
def test_opposite_embeddings_reach_the_bounds_of_attention(stages: int) -> None:
    case = Case(SQUARE, [(2, 3, 3)] * stages, 4, 4)  # unit vectors of one dimension: 1 or -1
    for index, embed in enumerate([*case.method.queries, *case.method.keys]):
        for parameter in embed.parameters():
            parameter.data.zero_()
        embed.second.bias.data.fill_(1.0 if index <= len(case.method.queries) else -1.0)
    attention = case.method.attention(list(case.own.values()), list(case.aims.values()))
    expected = 1 / (1 + (stages - 1) * torch.exp(torch.tensor(-2.0)))
    torch.testing.assert_close(attention[..., 0], expected.expand(4, 2))


def test_equal_stages_with_shared_keys_share_attention_equally() -> None:
    case = Case(SQUARE, [(2, 3, 3)] * 3, 8, 8)
    for key in case.method.keys:
        key.load_state_dict(case.method.keys[0].state_dict())
    same = [case.aims["stage1"]] * 3
    attention = case.method.attention(list(case.own.values()), same)
    torch.testing.assert_close(attention, torch.full((8, 2, 3), 1 / 3))


def test_with_one_teacher_stage_it_is_the_mean_of_projected_squares() -> None:
    case = Case(SQUARE, [(3, 3, 3)], 8, 8)
    first, second = case.own.values()
    (aim,) = case.aims.values()
    near = (case.method.projections[0](F.adaptive_avg_pool2d(first, 3)) - aim).square().mean()
    far = (case.method.projections[1](second) - aim).square().mean()
    torch.testing.assert_close(case.loss(), (near + far) / 2)


def test_maps_that_are_not_square_are_pooled_to_the_smaller_height_and_width() -> None:
    case = Case([(2, 6, 3)], [(3, 4, 5)], 4, 4)
    (own,), (aim,) = case.own.values(), case.aims.values()
    pooled = F.adaptive_avg_pool2d(own, (4, 3)), F.adaptive_avg_pool2d(aim, (4, 3))
    expected = (case.method.projections[0](pooled[0]) - pooled[1]).square().mean()
    torch.testing.assert_close(case.loss(), expected)


def test_attention_teaches_the_student_and_the_teacher_gets_no_gradient() -> None:
    case = Case(SQUARE, OTHERS, 8, 8)
    own = list(case.own.values())
    attention = case.method.attention(own, list(case.aims.values()))
    (gradient,) = torch.autograd.grad(attention[:, 0, 0].sum(), own[0])
    assert gradient.abs().sum() > 0
    case.loss().backward()
    assert all(aim.grad is None for aim in case.aims.values())


def test_a_query_without_direction_is_finite() -> None:
    case = Case(SQUARE, OTHERS, 8, 8)
    for parameter in case.method.queries[0].parameters():
        parameter.data.zero_()
    attention = case.method.attention(list(case.own.values()), list(case.aims.values()))
    torch.testing.assert_close(attention[:, 0], torch.full((8, 3), 1 / 3))
    case.loss().backward()
    assert all(leaf.grad.isfinite().all() for leaf in case.leaves().values())


def test_under_autocast_the_loss_is_that_of_float32() -> None:
    case = Case(SQUARE, OTHERS, 8, 8)
    expected = case.loss()
    with torch.autocast("cpu", torch.bfloat16):
        found = case.loss()
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    case.own = {name: value.bfloat16() for name, value in case.own.items()}
    assert case.loss().dtype == torch.float32


def test_the_mean_attention_of_the_batch_can_be_seen() -> None:
    case = Case(SQUARE, OTHERS, 8, 6)
    case.loss()
    seen = case.method.observations()
    attention = case.method.attention(list(case.own.values()), list(case.aims.values()))
    assert len(seen) == 6
    torch.testing.assert_close(seen["attention/stage2/stage3"], attention[:, 1, 2].mean().detach())
    assert not any(value.requires_grad for value in seen.values())


def test_beside_another_method_the_attention_goes_by_the_methods_name() -> None:
    case = Case([(2, 4, 4)], [(2, 4, 4)], 4, 4)
    options: list[MethodOptions] = [HintonConfig(), SemckdConfig(method="semckd")]
    both = Combined([_Nothing(), case.method], options, ["hinton", "semckd"])
    case.loss()
    assert set(both.observations()) == {"semckd/attention/stage1/stage1"}
    unused = Combined([case.method], [options[1].replace(weight=0.0)], ["semckd"])
    assert unused.observations() == {}


class _Nothing(Method):
    pass


def test_it_overfits_a_batch(pair, images) -> None:
    two = pair.of(STUDENT, TEACHER)
    method = two.method("semckd")
    assert (method.student_features, method.teacher_features) == (
        ("stage1", "stage2"),
        ("stage1", "stage2", "stage3"),
    )
    optimizer = torch.optim.Adam([*two.student.parameters(), *method.parameters()], 0.02)
    values = []
    for _ in range(30):
        (loss,) = two.losses(method, *images).values()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < 0.4 * values[0]


def test_named_features_are_compared_in_their_order(pair, images) -> None:
    two = pair.of(STUDENT, TEACHER)
    method = two.method("semckd", student_features=["stage2"], teacher_features=["stage3", "stage1"])
    two.losses(method, *images)
    assert list(method.observations()) == ["attention/stage2/stage3", "attention/stage2/stage1"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"student_features": ["embedding"]}, r"`embedding` has the shape \(96,\); name others"),
        ({"teacher_features": ["stage9"]}, "no feature `stage9`"),
    ],
)
def test_what_is_no_map_is_refused(pair, options: dict[str, list[str]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pair.of(STUDENT, TEACHER).method("semckd", **options)


def test_a_batch_too_small_for_attention_is_refused(pair) -> None:
    setting = pair.of(STUDENT, TEACHER).setting(batch_size=3)
    with pytest.raises(ValueError, match="4 or more, not 3; raise `batch_size`"):
        Semckd(SemckdConfig(method="semckd"), setting)


def test_a_model_without_stages_is_asked_for_names(pair) -> None:
    with pytest.raises(ValueError, match="say which feature is meant with `student_features`"):
        pair.of({"name": "mlp"}, TEACHER).method("semckd")
