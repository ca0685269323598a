"""Compare finished models: similarity of their layers, agreement of their answers, and where they look (Grad-CAM)."""

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from raydistill.errors import StageError, StageStopped
from raydistill.kinds.compare import CompareModelsConfig
from raydistill.kinds.targets import LOGITS
from raydistill.models.taps import Output, Tapped, feature_path
from raydistill.runs.context import StageContext
from raydistill.runs.files import atomic_write, write_json
from raydistill.stages.training_stage import load_data
from raydistill.tasks.hashing import fold_key, hash_ids
from raydistill.tasks.seeds import Purpose
from raydistill.tasks.splits import Split
from raydistill.training import model_files
from raydistill.training.method import Features
from raydistill.training.model_files import TrainedModel

COMPARISON, SAMPLES, GRAD_CAM = "comparison.json", "samples.parquet", "grad_cam.safetensors"
COLUMNS_AT_ONCE = 2**16  # of features in float64
CONSTANT = 1e-28  # of a Gram matrix's mean square: what rounding leaves of one whose samples are all alike
CONFUSIONS, PARTED = 100, 100

Integers = NDArray[np.int64]


class _Compared(NamedTuple):
    """A model with the layers that are compared, and which of them have maps (B, K, H, W)."""

    trained: TrainedModel
    layers: tuple[str, ...]
    mapped: tuple[str, ...]


def compare_models(config: CompareModelsConfig, context: StageContext) -> dict[str, float]:
    """One pass over the samples with all models beside one another, another one for Grad-CAM."""
    data = load_data(context)
    split = data.validation if config.split == "validation" else data.test
    order = _drawn(split, config.samples)
    compared = [
        _compared(model_files.load(context.input(ref), context.device), config) for ref in config.models
    ]
    batches = order.tensor_split(max(1, len(order) // config.batch_size))  # none is short: each has 4 samples
    split = split.to(context.device)
    similarity, logits = _pass(compared, split, batches, context)
    labels, ids = (values.cpu()[order].numpy() for values in (split.labels, split.ids))
    answers = logits.argmax(dim=2).numpy()
    confidence = logits.softmax(dim=2).amax(dim=2).numpy()
    ranks = _ranked(answers, confidence)
    pairs = {
        (first, second): _agreement(answers[[first, second]], labels, ids, ranks)
        for first, second in combinations(range(len(compared)), 2)
    }
    _write_samples(context, ids, labels, answers, confidence)
    shown = _shown(config, split.ids.cpu(), order[torch.from_numpy(ranks)])
    seen = _grad_cam(context, compared, split, shown)
    write_json(
        context.path(COMPARISON),
        {
            "split": config.split,
            "samples": len(order),
            "of": len(split),
            "batch": len(batches[-1]),
            "class_names": list(context.task.class_names),
            "models": [
                {"layers": [*one.layers, LOGITS], "right": int((own == labels).sum()), **how}
                for one, how, own in zip(compared, seen, answers, strict=True)
            ],
            "cka": similarity.cka().tolist(),
            "mismatch": similarity.mismatch().tolist(),
            "pairs": [{"first": first, "second": second, **pair} for (first, second), pair in pairs.items()],
        },
    )
    return {
        f"agreement/{first}-{second}": pair["same"] / len(order) for (first, second), pair in pairs.items()
    }


def _drawn(split: Split, samples: int) -> Tensor:
    """Positions of the samples, in the order of the hashes of their ids: classes that lie together are mixed."""
    if len(split) < 4:
        raise StageError(
            f"the split has {len(split)} samples, and layers are compared on 4 or more; `split` names another one, the"
            " task's `validation_fraction` makes it larger"
        )
    hashes = hash_ids(split.ids.cpu().numpy(), fold_key(Purpose.COMPARED))
    return torch.from_numpy(np.argsort(hashes, kind="stable")[:samples])


def _compared(trained: TrainedModel, config: CompareModelsConfig) -> _Compared:
    features = Features(trained.model, trained.input_shape, trained.input_dtype == torch.int64)
    try:
        layers = chosen_layers(features, config.layers)
        shapes = features.shapes(layers)
    except ValueError as error:
        raise StageError(str(error)) from error
    maps = [
        name
        for name, shape in zip(layers, shapes, strict=True)
        if len(shape) == 3 and shape[1] * shape[2] > 1
    ]
    return _Compared(trained, layers, tuple(maps))


def chosen_layers(features: Features, wanted: Sequence[str] | None) -> tuple[str, ...]:
    """Which layers of a model are compared: of the `wanted` those that it has; else all that it names, but for what a
    ReLU reads (`X_pre`), and what has several names by the last; of a network that names none the parts that give a
    tensor. The logits come by themselves. `ValueError` where none of the `wanted` is there."""
    if wanted is not None:
        found = tuple(name for name in wanted if name != LOGITS and _has(features.model, name))
        if not found and LOGITS not in wanted:
            feature_path(features.model, wanted[0])  # raises, and says what there is
        return found
    named: dict[str, str] = getattr(features.model, "feature_paths", {})
    if named:
        names = [name for name in named if not name.endswith("_pre") and name != LOGITS]
        values = features.probe(names)
        is_last = [
            all(value is not other for other in values[place + 1 :]) for place, value in enumerate(values)
        ]
        return tuple(name for name, is_kept in zip(names, is_last, strict=True) if is_kept)
    return tuple(name for name, _ in features.model.named_children() if _gives_tensor(features, name))


def _has(model: nn.Module, name: str) -> bool:
    try:
        feature_path(model, name)
    except ValueError:
        return False
    return True


def _gives_tensor(features: Features, name: str) -> bool:
    """And one that is still as it was when the pass is over."""
    try:
        features.probe([name])
    except ValueError:
        return False
    return True


@torch.no_grad()
def _pass(
    compared: Sequence[_Compared], split: Split, batches: Sequence[Tensor], context: StageContext
) -> tuple["Similarity", Tensor]:
    """How alike all layers of all models are, and the logits (models, N, C) on the CPU."""
    similarity, logits = Similarity(), []
    tapped = [Tapped(one.trained.model, one.layers) for one in compared]
    try:
        for inputs in split.batches(batches, None):
            if context.should_stop():
                raise StageStopped("stopped before the models were compared; run the plan again")
            outputs: list[Output] = [
                model(one.trained.prepared(inputs)) for model, one in zip(tapped, compared, strict=True)
            ]
            similarity.add(
                [layer for output in outputs for layer in (*output.features.values(), output.logits)]
            )
            logits.append(torch.stack([output.logits.float().cpu() for output in outputs]))
    finally:
        for model in tapped:
            model.remove_hooks()
    return similarity, torch.cat(logits, dim=1)


class Similarity:
    """CKA and semantic mismatch (L, L) of layers over the batches that were added: see `CompareModelsConfig`."""

    def __init__(self) -> None:
        self._batches = 0
        self._hsic = self._mismatch = self._squares = torch.zeros(())

    def add(self, layers: Sequence[Tensor]) -> None:
        """The features (B, ...) of one batch, of 4 samples or more, by layer."""
        grams = torch.stack([_gram(layer.flatten(1)) for layer in layers])
        self._batches += 1
        self._hsic = self._hsic + hsic(grams)
        self._squares = self._squares + grams.square().mean(dim=(1, 2))
        self._mismatch = self._mismatch + mismatch(grams)

    def cka(self) -> Tensor:
        """NaN for a layer that gives the same for all samples."""
        own = self._hsic.diagonal()
        own = torch.where(own > CONSTANT * self._squares, own, torch.nan)
        return (self._hsic / (own[:, None] * own).sqrt()).cpu()

    def mismatch(self) -> Tensor:
        return (self._mismatch / self._batches).cpu()


def _gram(features: Tensor) -> Tensor:
    """F Fᵀ (B, B) float64 of F (B, D)."""
    parts = (part.double() for part in features.split(COLUMNS_AT_ONCE, dim=1))
    return torch.stack([part @ part.T for part in parts]).sum(dim=0)


def hsic(grams: Tensor) -> Tensor:
    """The unbiased estimate of HSIC (Song et al. 2012, eq. 5) of each two of L Gram matrices (L, B, B), as (L, L).

    It is Σ_i≠j A_ij B_ij / (B (B - 3)) of the U-centred matrices (Székely and Rizzo 2014).
    """
    count = grams.shape[-1]
    others = grams - torch.diag_embed(grams.diagonal(dim1=1, dim2=2))
    rows = others.sum(dim=2, keepdim=True) / (count - 2)
    centred = others - rows - rows.mT + rows.sum(dim=1, keepdim=True) / (count - 1)
    centred = (centred - torch.diag_embed(centred.diagonal(dim1=1, dim2=2))).flatten(1)
    return centred @ centred.T / (count * (count - 3))


def mismatch(grams: Tensor) -> Tensor:
    """The mean distance of the rows, of length 1, of each two of L similarity matrices (L, B, B), as (L, L)."""
    rows = F.normalize(grams, dim=2).transpose(0, 1)  # (B, L, B)
    products = rows @ rows.mT
    squares = products.diagonal(dim1=1, dim2=2)
    distances: Tensor = (
        (squares[:, :, None] + squares[:, None] - 2 * products).clamp(min=0).sqrt().mean(dim=0)
    )
    return distances.fill_diagonal_(0)  # where rounding alone is left, of which the root is 1e-8


def _ranked(answers: Integers, confidence: NDArray[np.float32]) -> Integers:
    """Places (N,) of the samples, first those on which not all answers (models, N) are one, then the surest."""
    is_parted = (answers != answers[0]).any(axis=0)
    return np.lexsort((-confidence.min(axis=0), ~is_parted))


def _agreement(answers: Integers, labels: Integers, ids: Integers, ranks: Integers) -> dict[str, Any]:
    """What two models' answers (2, N) have in common. `by_class`: samples of each class, and equal answers to them;
    `confusions`: (class, answer, answer, times) where one errs at least, the most frequent first."""
    first, second = answers
    is_same, first_right, second_right = first == second, first == labels, second == labels
    wrong = ~(first_right & second_right)
    triples = zip(*(values[wrong].tolist() for values in (labels, first, second)), strict=True)
    classes = int(labels.max()) + 1
    return {
        "same": int(is_same.sum()),
        "both_right": int((first_right & second_right).sum()),
        "only_first_right": int((first_right & ~second_right).sum()),
        "only_second_right": int((second_right & ~first_right).sum()),
        "same_error": int((is_same & ~first_right).sum()),
        "by_class": np.stack(
            [np.bincount(labels, minlength=classes), np.bincount(labels[is_same], minlength=classes)], axis=1
        ).tolist(),
        "confusions": [
            [*triple, times] for triple, times in Counter(sorted(triples)).most_common(CONFUSIONS)
        ],
        "parted": ids[ranks][~is_same[ranks]][:PARTED].tolist(),
    }


def _write_samples(
    context: StageContext, ids: Integers, labels: Integers, answers: Integers, confidence: NDArray[np.float32]
) -> None:
    columns = {"id": ids, "label": labels}
    for place, (own, sure) in enumerate(zip(answers, confidence, strict=True)):
        columns |= {f"answer_{place}": own, f"confidence_{place}": sure}
    with atomic_write(context.path(SAMPLES)) as temporary:
        pq.write_table(pa.table(columns), temporary)


def _shown(config: CompareModelsConfig, ids: Tensor, ranked: Tensor) -> Tensor:
    """Positions in the split of the pictures for Grad-CAM."""
    if isinstance(config.pictures, int):
        return ranked[: config.pictures]
    places = {sample: place for place, sample in enumerate(ids.tolist())}
    for sample in config.pictures:
        if sample not in places:
            raise StageError(f"`pictures`: the {config.split} split has no sample with the id {sample}")
    return torch.tensor([places[sample] for sample in config.pictures], dtype=torch.int64)


def _grad_cam(
    context: StageContext, compared: Sequence[_Compared], split: Split, shown: Tensor
) -> list[dict[str, str]]:
    """Write pictures (P, C, H, W) and where each model looks; returns of each the layer (`seen_at`), or why there is
    none (`unseen`)."""
    shape = context.task.input_shape
    if len(shape) != 3 or shape[0] not in (1, 3):
        return [{"unseen": "the inputs are no pictures"}] * len(compared)
    if not len(shown):
        return [{}] * len(compared)
    (inputs,) = split.batches([shown], None)
    tensors = {
        "pictures": inputs.clamp(0, 1).mul(255).round().byte(),
        **{
            key: values[shown.to(values.device)]
            for key, values in (("ids", split.ids), ("labels", split.labels))
        },
    }
    seen: list[dict[str, str]] = []
    for place, (trained, _, mapped) in enumerate(compared):
        tensors[f"answers_{place}"] = trained.logits(inputs).argmax(dim=1)
        try:
            if not mapped:
                raise ValueError("none of its layers has maps, which say where something is")
            tensors[f"maps_{place}"] = grad_cam(trained.model, mapped[-1], trained.prepared(inputs))
            seen.append({"seen_at": mapped[-1]})
        except ValueError as error:
            seen.append({"unseen": str(error)})
    with atomic_write(context.path(GRAD_CAM)) as temporary:
        save_file({name: values.cpu().contiguous() for name, values in tensors.items()}, temporary)
    return seen


def grad_cam(model: nn.Module, layer: str, inputs: Tensor) -> Tensor:
    """Where a model in eval mode sees the class that it predicts, (B, H, W) ≥ 0, of the maps (B, K, H, W) of a layer:
    relu(Σ_k w_k maps_k), w_k the mean over places of the gradient of the class's logit (arXiv 1610.02391, eq. 1 and 2).

    `ValueError` where no gradient comes back from the logits.
    """
    tapped = Tapped(model, [layer])
    try:
        with torch.enable_grad():
            # The weights are frozen: the graph begins at the inputs.
            output: Output = tapped(inputs.detach().clone().requires_grad_())
            maps = output.features[layer]
            if not (maps.requires_grad and output.logits.requires_grad):
                raise ValueError("no gradient comes back from its logits: it is a program")
            (gradient,) = torch.autograd.grad(output.logits.max(dim=1).values.sum(), maps)
    finally:
        tapped.remove_hooks()
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    return (weights * maps.detach()).sum(dim=1).relu()
