"""Models side by side: similarity of layers against sums over samples in float64, Grad-CAM against its closed form."""

import json
import math
import re
from itertools import permutations
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from raydistill.errors import PlanError
from raydistill.models.build import build_model
from raydistill.stages.compare_models import Similarity, grad_cam, hsic
from raydistill.stages.model_probe import check_features

CNN = {"stage": "train", "epochs": 2, "batch_size": 16, "model": {"name": "cnn", "widths": [3, 4]}}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def similarity(*batches: list[Tensor]) -> Similarity:
    found = Similarity()
    for layers in batches:
        found.add(layers)
    return found


def slow_hsic(first: Tensor, second: Tensor) -> float:
    """Song et al. 2012, eq. 4: the mean over all ordered 4-tuples of distinct samples of
    k_ij l_ij + k_ij l_qr - 2 k_ij l_iq."""
    total, count = 0.0, 0
    for i, j, q, r in permutations(range(len(first)), 4):
        total += float(first[i, j] * (second[i, j] + second[q, r] - 2 * second[i, q]))
        count += 1
    return total / count


def slow_mismatch(first: Tensor, second: Tensor) -> float:
    """Sample by sample: the distance of two rows of inner products with the others, each of length 1."""
    distances = []
    for one, other in zip(first, second, strict=True):
        own = [float(one @ sample) for sample in first]
        its = [float(other @ sample) for sample in second]
        lengths = [math.sqrt(sum(value * value for value in row)) for row in (own, its)]
        distances.append(
            math.dist(*([v / n for v in row] for row, n in zip((own, its), lengths, strict=True)))
        )
    return sum(distances) / len(distances)


def test_hsic_is_the_mean_over_all_quadruples_of_samples() -> None:
    features = [drawn(7, 3), drawn(7, 5, seed=1) + 10]
    grams = torch.stack([layer @ layer.T for layer in features])
    found = hsic(grams)
    for row in (0, 1):
        for column in (0, 1):
            assert float(found[row, column]) == pytest.approx(slow_hsic(grams[row], grams[column]), rel=1e-9)


def test_cka_divides_means_over_batches() -> None:
    batches = [[drawn(6, 3, seed=2 * k), drawn(6, 2, seed=2 * k + 1)] for k in range(3)]
    sums = {
        pair: sum(
            slow_hsic(batch[pair[0]] @ batch[pair[0]].T, batch[pair[1]] @ batch[pair[1]].T)
            for batch in batches
        )
        for pair in ((0, 0), (0, 1), (1, 1))
    }
    expected = sums[0, 1] / math.sqrt(sums[0, 0] * sums[1, 1])
    cka = similarity(*batches).cka()
    assert float(cka[0, 1]) == float(cka[1, 0]) == pytest.approx(expected, rel=1e-9)
    assert cka.diagonal().tolist() == pytest.approx([1, 1])


def test_cka_is_blind_to_rotations_factors_and_shifts_and_to_nothing_else() -> None:
    layer = drawn(40, 4)
    rotation = torch.linalg.qr(drawn(4, 4, seed=1)).Q
    stretched = layer * torch.tensor([9.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    cka = similarity([layer, 3 * layer @ rotation + 5, stretched]).cka()
    assert float(cka[0, 1]) == pytest.approx(1, abs=1e-9)
    assert float(cka[0, 2]) < 0.9


def test_unrelated_layers_have_a_cka_of_about_0_however_wide_they_are() -> None:
    # The estimate with a bias would be near 1 here: features are ten times as many as samples.
    batches = [
        [drawn(20, 200, seed=2 * k).float(), drawn(20, 200, seed=2 * k + 1).float()] for k in range(30)
    ]
    assert abs(float(similarity(*batches).cka()[0, 1])) < 0.1


def test_a_layer_that_gives_the_same_for_all_has_no_cka() -> None:
    cka = similarity([drawn(8, 3), torch.full((8, 3), 0.7)]).cka()
    assert float(cka[0, 0]) == pytest.approx(1)
    assert cka[0, 1].isnan()
    assert cka[1, 1].isnan()


def test_mismatch_is_the_mean_distance_of_rows_of_similarities() -> None:
    batches = [[drawn(6, 2, 3, seed=k), drawn(6, 4, seed=k + 9)] for k in range(2)]
    expected = sum(slow_mismatch(own.flatten(1), its) for own, its in batches) / 2
    found = similarity(*batches).mismatch()
    assert float(found[0, 1]) == pytest.approx(expected, rel=1e-9)
    assert found.diagonal().tolist() == [0, 0]


def test_the_scale_of_mismatch_goes_from_0_to_the_root_of_2_and_to_2() -> None:
    apart = torch.eye(6, dtype=torch.float64)
    swapped = apart.clone()
    swapped[:, 0] = 1e6  # all look alike
    rotation = torch.linalg.qr(drawn(6, 6)).Q
    found = similarity([apart, 7 * apart @ rotation, swapped]).mismatch()
    assert float(found[0, 1]) == pytest.approx(0, abs=1e-7)
    # A unit vector against one with equal entries in 6 places: 2 - 2 / √6.
    assert float(found[0, 2]) == pytest.approx(math.sqrt(2 - 2 / math.sqrt(6)), rel=1e-6)


def test_grad_cam_of_pooled_maps_is_their_sum_with_the_weights_of_the_class() -> None:
    model = build_model("resnet8", {}, (3, 16, 16), 5).eval().requires_grad_(False)
    inputs = drawn(4, 3, 16, 16).float()
    maps: list[Tensor] = []
    model.get_submodule(model.feature_paths["stage3"]).register_forward_hook(
        lambda *call: maps.append(call[2])
    )  # type: ignore[index]
    classes = model(inputs).argmax(dim=1)
    (linear,) = [module for module in model.modules() if isinstance(module, nn.Linear)]
    places = maps[0][0, 0].numel()
    expected = torch.einsum("bk,bkhw->bhw", linear.weight[classes], maps[0]).relu() / places
    assert float(expected.max()) > 0
    torch.testing.assert_close(grad_cam(model, "stage3", inputs), expected)


def test_a_program_without_gradients_says_so() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3)).eval()
    model[0].register_forward_hook(lambda module, inputs, output: output.detach())
    with pytest.raises(ValueError, match="no gradient"):
        grad_cam(model.requires_grad_(False), "0", torch.rand(2, 1, 4, 4))


def compare(stages: Any, **options: Any) -> dict[str, Any]:
    mlp = CNN | {"model": {"name": "mlp", "widths": [5]}}
    three = {"big": CNN, "small": CNN | {"model": {"name": "cnn", "widths": [2]}, "seed": 1}, "flat": mlp}
    comparison = {"stage": "compare_models", "models": ["big", "small", "flat"], "batch_size": 5, **options}
    stages.run({**three, "comparison": comparison})
    found: dict[str, Any] = json.loads((stages.folder("comparison").path / "comparison.json").read_text())
    return found


def test_a_comparison_counts_what_the_models_answer(stages: Any) -> None:
    found = compare(stages, split="test")
    rows = pq.read_table(stages.folder("comparison").path / "samples.parquet").to_pydict()
    arrays = np.load(stages.file)
    place = {int(sample): row for row, sample in enumerate(arrays["ids"])}
    chosen = [place[sample] for sample in rows["id"]]
    assert rows["label"] == arrays["labels"][chosen].tolist()
    answers = [stages.logits(name)[chosen].argmax(dim=1).tolist() for name in ("big", "small", "flat")]
    assert [rows[f"answer_{index}"] for index in range(3)] == answers

    pair = next(pair for pair in found["pairs"] if (pair["first"], pair["second"]) == (0, 2))
    triples = list(zip(rows["label"], answers[0], answers[2], strict=True))
    assert found["samples"] == found["of"] == len(triples)
    assert pair["same"] == sum(first == second for _, first, second in triples)
    assert pair["both_right"] == sum(label == first == second for label, first, second in triples)
    assert pair["only_second_right"] == sum(label == second != first for label, first, second in triples)
    assert pair["same_error"] == sum(first == second != label for label, first, second in triples)
    of_class_1 = [triple for triple in triples if triple[0] == 1]
    assert pair["by_class"][1] == [len(of_class_1), sum(first == second for _, first, second in of_class_1)]
    wrong = [triple for triple in triples if len(set(triple)) > 1]
    assert sum(times for *_, times in pair["confusions"]) == len(wrong)
    assert all(times == wrong.count(tuple(triple)) for *triple, times in pair["confusions"])
    parted = [sample for sample, triple in zip(rows["id"], triples, strict=True) if triple[1] != triple[2]]
    assert sorted(pair["parted"]) == sorted(parted)
    assert stages.record("comparison").metrics["agreement/0-2"] == pair["same"] / len(triples)


def test_layers_are_those_that_the_networks_name_and_the_logits(stages: Any) -> None:
    found = compare(stages)
    layers = [model["layers"] for model in found["models"]]
    # With one convolution in a stage the stem is the stage; the hidden layer of the MLP is its embedding.
    assert layers[0] == ["stage1", "stage2", "embedding", "logits"]
    assert layers[2] == ["embedding", "logits"]
    cka = np.array(found["cka"], dtype=float)
    assert cka.shape == (sum(map(len, layers)),) * 2
    np.testing.assert_allclose(np.diag(cka), 1)


def test_a_comparison_sees_the_features_of_the_models(stages: Any) -> None:
    found = compare(stages)
    rows = pq.read_table(stages.folder("comparison").path / "samples.parquet").to_pydict()
    arrays = np.load(stages.file)
    place = {int(sample): row for row, sample in enumerate(arrays["ids"])}
    chosen = [place[sample] for sample in rows["id"]]
    logits = [stages.logits(name)[chosen].double() for name in ("big", "flat")]
    parts = [layer.tensor_split(len(chosen) // 5) for layer in logits]
    expected = similarity(*([*pair] for pair in zip(*parts, strict=True)))
    sizes = [len(model["layers"]) for model in found["models"]]
    last = [sizes[0] - 1, sum(sizes) - 1]
    assert found["cka"][last[0]][last[1]] == pytest.approx(float(expected.cka()[0, 1]), rel=1e-5)
    assert found["mismatch"][last[0]][last[1]] == pytest.approx(float(expected.mismatch()[0, 1]), rel=1e-5)


def test_who_has_no_maps_has_no_grad_cam_and_that_is_said(stages: Any) -> None:
    ids = np.load(stages.file)["ids"].tolist()
    found = compare(stages, pictures=3)
    big, small, flat = found["models"]
    assert (big["seen_at"], small["seen_at"]) == ("stage2", "stage1")
    assert "none of its layers has maps" in flat["unseen"]
    kept = load_file(stages.folder("comparison").path / "grad_cam.safetensors")
    assert kept["pictures"].shape == (3, 1, 8, 8)
    assert set(kept["ids"].tolist()) <= set(ids)
    assert kept["maps_0"].shape == (3, 4, 4)
    assert "maps_2" not in kept
    model = stages.model("big")
    rows = [ids.index(sample) for sample in kept["ids"].tolist()]
    inputs = torch.from_numpy(np.load(stages.file)["inputs"][rows])
    torch.testing.assert_close(kept["maps_0"], grad_cam(model.model, "stage2", model.prepared(inputs)))


def test_pictures_are_those_that_the_plan_names(stages: Any) -> None:
    compare(stages)
    some = pq.read_table(stages.folder("comparison").path / "samples.parquet").to_pydict()["id"][3:5]
    compare(stages, pictures=some)
    assert load_file(stages.folder("comparison").path / "grad_cam.safetensors")["ids"].tolist() == some


def test_a_sample_that_is_not_there_is_named(stages: Any) -> None:
    comparison = {"stage": "compare_models", "models": ["big", "small"]}
    stages.run({"big": CNN, "small": CNN | {"seed": 1}})
    stages.write({"big": CNN, "small": CNN | {"seed": 1}, "c": comparison | {"pictures": [5000]}})
    outcome = stages.attempt("c")
    assert outcome.status == "failed"
    assert "no sample with the id 5000" in str(outcome.error)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"models": ["big"]}, "name another one to compare it with"),
        ({"models": ["big", "twin"]}, "equal to the last digit"),
        (
            {"models": ["big", "flat"], "layers": ["stage2", "stage7"]},
            "`flat`: Network has no feature `stage2`",
        ),
        (
            {"models": ["big", "small"], "layers": ["stage2", "stage7"]},
            "no model of the stage has the layer `stage7`",
        ),
    ],
)
def test_what_cannot_be_compared_is_an_error_before_anything_runs(
    stages: Any, options: dict[str, Any], message: str
) -> None:
    models = {"big": CNN, "twin": CNN, "small": CNN | {"seed": 1}, "flat": CNN | {"model": {"name": "mlp"}}}
    with pytest.raises(PlanError, match=re.escape(message)):
        check_features(stages.write({**models, "c": {"stage": "compare_models", **options}}), stages.plan)


def test_only_what_is_said_of_the_test_split_depends_on_it(stages: Any) -> None:
    def identity(split: str) -> Any:
        comparison = {"stage": "compare_models", "models": ["big", "small"], "split": split}
        return (
            stages.write({"big": CNN, "small": CNN | {"seed": 1}, "c": comparison})
            .nodes["c"]
            .identity["task"]
        )

    assert identity("test") == identity("validation") | {"test": stages.graph.test}


OWN = """
import torch
from torch import nn

class Own(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.convolution = nn.Conv2d(1, 3, 3)
        self.relu = nn.ReLU(inplace=True)
        self.pair = nn.LSTM(108, 4, batch_first=True)
        self.classifier = nn.Linear(4, num_classes)

    def forward(self, inputs):
        rows, _ = self.pair(self.relu(self.convolution(inputs)).flatten(1)[:, None])
        return self.classifier(rows[:, 0])

def build(input_shape, num_classes):
    return Own(num_classes)
"""


def test_of_a_network_of_ones_own_the_parts_are_compared_that_give_a_tensor(
    stages: Any, users_models: Any
) -> None:
    own = CNN | {"model": {"name": f"{users_models(OWN)}:build"}}
    comparison = {"stage": "compare_models", "models": ["own", "flat"], "batch_size": 5}
    stages.run({"own": own, "flat": CNN | {"model": {"name": "mlp"}}, "comparison": comparison})
    found = json.loads((stages.folder("comparison").path / "comparison.json").read_text())["models"][0]
    # The convolution's output is overwritten in place, the LSTM gives several tensors.
    assert found["layers"] == ["relu", "classifier", "logits"]
    assert found["seen_at"] == "relu"


def test_of_inputs_that_are_no_pictures_there_is_no_grad_cam(stages: Any) -> None:
    arrays = dict(np.load(stages.file))
    np.savez(stages.file, **arrays | {"inputs": arrays["inputs"].reshape(150, 64)})
    flat = CNN | {"model": {"name": "mlp", "widths": [5]}}
    comparison = {"stage": "compare_models", "models": ["one", "two"], "batch_size": 5}
    stages.run({"one": flat, "two": flat | {"seed": 1}, "comparison": comparison})
    found = json.loads((stages.folder("comparison").path / "comparison.json").read_text())["models"]
    assert [model["unseen"] for model in found] == ["the inputs are no pictures"] * 2
    assert "grad_cam.safetensors" not in stages.record("comparison").payload


def test_students_leave_word_of_the_layers_that_their_methods_compare(stages: Any) -> None:
    live = {"stage": "distill", "student": CNN["model"], "teachers": ["teacher"], "mode": "live", "epochs": 1}
    pairs = [["stage1", "stage1"], ["stage2", "stage2"]]
    expected: dict[str, Any] = {
        "answers": {},
        "attentive": {},  # all with all, as its attention says
        "several": {"attention_transfer": pairs, "hints": [["stage1", "stage2"]]},
        "embedded": {"embedding": [["embedding", "embedding"]]},
        "reusing": {"reuse_classifier": [["projector", "pool2"]]},  # what the teacher pools, it classifies
    }
    methods: dict[str, list[dict[str, Any]]] = {
        "answers": [{"method": "hinton"}],
        "attentive": [{"method": "semckd"}],
        "several": [
            {"method": "labels"},
            {"method": "attention_transfer"},
            {"method": "hints", "student_feature": "stage1", "teacher_feature": "stage2"},
            {"method": "relational", "weight": 0},
        ],
        "embedded": [{"method": "embedding"}],
    }
    plan = {name: live | {"methods": chosen} for name, chosen in methods.items()}
    plan["embedded"]["mode"] = "stored"
    plan["reusing"] = {
        "stage": "reuse_classifier",
        "student": CNN["model"],
        "teacher": "teacher",
        "epochs": 1,
    }
    stages.run({"teacher": CNN} | plan)
    for name, layers in expected.items():
        found = stages.folder(name).path / "compared_layers.json"
        assert (json.loads(found.read_text()) if found.exists() else {}) == layers
        assert ("compared_layers.json" in stages.record(name).payload) == bool(layers)
