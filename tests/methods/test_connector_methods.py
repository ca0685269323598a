"""Review, variational information and masked generation: known values, and what their own layers do."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raydistill.methods.review import Join, level_distance
from raydistill.methods.variational_information import FIRST, unlikelihood

SMALL = {"name": "resnet8"}
LARGE = {"name": "resnet8x4"}
UNLIKE = {"name": "cnn", "widths": [5, 7, 9], "batch_norm": True}
WORDS = ("review", "variational_information", "masked_generation")


def fill(shape: tuple[int, ...], slope: float) -> Tensor:
    return torch.sin(slope * torch.arange(1, math.prod(shape) + 1, dtype=torch.float64)).reshape(shape)


@pytest.mark.parametrize(
    ("side", "value"), [(8, 0.669964651), (4, 0.598536673), (2, 0.843209107), (1, 0.719266462)]
)
def test_distances_over_levels_have_their_known_values(side: int, value: float) -> None:
    own, aim = fill((2, 3, side, side), 0.7), fill((2, 3, side, side), 1.1)
    assert level_distance(own, aim).item() == pytest.approx(value, abs=2e-9)
    assert level_distance(aim, aim).item() == 0
    ones = torch.ones(2, 3, side, side)
    assert level_distance(ones, 0 * ones).item() == pytest.approx(1)


def test_a_checkerboard_is_seen_on_the_finest_level_alone() -> None:
    places = torch.arange(8)
    board = (1 - 2 * ((places[:, None] + places) % 2)).double().expand(1, 1, 8, 8)
    assert level_distance(board, 0 * board).item() == pytest.approx(1 / 1.875)


def test_a_join_has_the_published_number_of_weights_and_gates_between_0_and_1() -> None:
    join = Join(3, 5, 4, is_top=False)
    assert sum(parameter.numel() for parameter in join.parameters()) == 228
    assert join.gates is not None
    gates = join.gates(torch.randn(2, 8, 3, 3))
    assert ((gates > 0) & (gates < 1)).all()


def test_what_comes_from_above_counts_as_its_gate_says() -> None:
    """Both gates at ½: half of the own map and half of the one from above, laid out on the finer grid."""
    join = Join(3, 5, 4, is_top=False).double().eval()
    assert join.gates is not None
    nn.init.zeros_(join.gates[0].weight)
    nn.init.zeros_(join.gates[0].bias)
    own, above = fill((2, 3, 4, 4), 0.7), fill((2, 4, 2, 2), 1.1)
    joined, brought = join(own, above, fill((2, 5, 4, 4), 0.3))
    spread = above.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(joined, (join.inner(own) + spread) / 2)
    torch.testing.assert_close(brought, join.out(joined))


def test_unlikelihoods_have_their_known_values() -> None:
    at_start = torch.tensor([FIRST])
    assert unlikelihood(torch.zeros(1), at_start).item() == pytest.approx(0.804718956)
    assert unlikelihood(torch.ones(1), at_start).item() == pytest.approx(0.904718956)
    quarter = torch.tensor([0.25], requires_grad=True)
    best = unlikelihood(torch.tensor([0.25]), quarter)
    best.backward()
    assert best.item() == pytest.approx(-0.193147181)
    assert quarter.grad is not None
    assert quarter.grad.item() == pytest.approx(0, abs=1e-7)


def test_variances_start_at_5_learn_and_have_no_decay(pair: Any, images: Any) -> None:
    models = pair.of(SMALL, LARGE)
    method = models.method("variational_information")
    (loss,) = models.losses(method, *images).values()
    seen = method.observations()
    assert seen["variance"].item() == pytest.approx(5, rel=1e-5)
    loss.backward()
    assert all(spread.grad.abs().min() > 0 for spread in method.spreads)
    assert {id(parameter) for parameter in method.undecayed()} == {id(spread) for spread in method.spreads}
    first = 3 * math.log(5) / 2  # what three stages cost at an error of 0
    assert loss.item() == pytest.approx(first + 3 * seen["error"].item() / 10, rel=1e-4)


GENERATION = {"student_feature": "own", "teacher_feature": "aim"}


def generation(masked: float, mask: str = "channels") -> float:
    """The release's case: identity kernels, no biases, a sum over all but the batch."""
    from raydistill.kinds.connector_methods import MaskedGenerationConfig
    from raydistill.methods.masked_generation import MaskedGeneration
    from raydistill.models.taps import Output
    from raydistill.targets.mixing import TeacherTargets
    from raydistill.training.data import Batch
    from raydistill.training.method import MethodContext, StoredFeatures

    stored = StoredFeatures(nn.Module(), (), known={"own": (3, 4, 4), "aim": (3, 4, 4)})
    options = {
        "method": "masked_generation",
        "masked": masked,
        "mask": mask,
        "reduction": "sum",
        **GENERATION,
    }
    method = MaskedGeneration(MaskedGenerationConfig.model_validate(options), MethodContext(stored, stored))
    for layer in (method.generate[0], method.generate[2]):
        nn.init.dirac_(layer.weight)
        nn.init.zeros_(layer.bias)
    own, aim = fill((2, 3, 4, 4), 0.7), fill((2, 3, 4, 4), 1.1)
    rows = torch.arange(2)
    targets = TeacherTargets(torch.zeros(2, 1, 2), torch.ones(2, 1), {"aim": aim})
    (loss,) = method.losses(
        Output(torch.zeros(2, 2), {"own": own}), targets, Batch(own, rows, rows, rows)
    ).values()
    return loss.item()


@pytest.mark.parametrize("mask", ["channels", "places"])
@pytest.mark.parametrize(("masked", "value"), [(0, 35.346138297), (1, 24.261155416)])
def test_masked_generation_has_its_known_values(mask: str, masked: float, value: float) -> None:
    assert generation(masked, mask) == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize(("mask", "shape"), [("channels", (400, 16, 1, 1)), ("places", (400, 1, 4, 4))])
def test_masks_blank_as_much_as_they_are_told_and_come_again_with_the_seed(
    pair: Any, mask: str, shape: tuple[int, ...]
) -> None:
    method = pair.of(SMALL, LARGE).method("masked_generation", masked=0.3, mask=mask)
    maps = torch.ones(400, 16, 4, 4)
    torch.manual_seed(5)
    drawn = method.mask(maps)
    torch.manual_seed(5)
    assert torch.equal(method.mask(maps), drawn)
    assert drawn.shape == shape
    assert set(drawn.unique().tolist()) == {0, 1}
    assert drawn.mean().item() == pytest.approx(0.7, abs=0.03)


@pytest.mark.parametrize("size", [1, 8])
@pytest.mark.parametrize("teacher", [LARGE, UNLIKE], ids=["alike", "unlike"])
@pytest.mark.parametrize("word", WORDS)
def test_every_layer_of_a_method_s_own_has_a_gradient_and_the_teacher_none(
    pair: Any, images: Any, word: str, teacher: dict[str, Any], size: int
) -> None:
    models = pair.of(SMALL, teacher)
    method = models.method(word)
    inputs, labels = (part[:size] for part in images)
    loss = sum(models.losses(method, inputs, labels).values())
    loss.backward()
    assert loss.isfinite()
    assert all(
        parameter.grad is not None and parameter.grad.isfinite().all() for parameter in method.parameters()
    )
    assert any(parameter.grad is not None for parameter in models.student.parameters())
    assert all(parameter.grad is None for parameter in models.teacher.parameters())


@pytest.mark.parametrize("word", WORDS)
def test_a_batch_is_learned_by_heart(pair: Any, images: Any, word: str) -> None:
    models = pair.of(SMALL, LARGE)
    method = models.method(word, **({"masked": 0} if word == "masked_generation" else {}))
    optimizer = torch.optim.Adam([*models.student.parameters(), *method.parameters()], 0.01)
    history = []
    for _ in range(150):
        loss = sum(models.losses(method, *images).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    # A variance of 5 takes its time; the two convolutions behind the mask begin near 0, as the teacher's maps are.
    assert (
        history[-1]
        < history[0] * {"review": 0.3, "variational_information": 0.9, "masked_generation": 0.7}[word]
    )


@pytest.mark.parametrize(
    ("word", "options", "words"),
    [
        ("review", {"student_features": ["stage1"]}, "there are 1 and 3; name as many"),
        ("review", {"student_features": ["stage1", "stage2", "embedding"]}, "`embedding` has the shape"),
        ("variational_information", {"teacher_features": ["stage1"]}, "there are 3 and 1; name as many"),
        ("masked_generation", {"teacher_feature": "embedding"}, "others in `teacher_feature`"),
        ("masked_generation", {"student_feature": "stage7"}, "no feature `stage7`"),
    ],
)
def test_layers_that_do_not_suit_are_refused(
    pair: Any, word: str, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        pair.of(SMALL, LARGE).method(word, **options)


def test_the_joining_layers_have_the_published_number_of_weights(pair: Any) -> None:
    """ResNet-32x4 → ResNet-8x4: 1,808,774 (methods of the release, on CIFAR's three channels)."""
    method = pair.of({"name": "resnet8x4"}, {"name": "resnet32x4"}).method("review")
    assert sum(parameter.numel() for parameter in method.parameters()) == 1_808_774
