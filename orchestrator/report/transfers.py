"""Models of one architecture that learned from different parts of the data: soft targets as regularisers
(arXiv 1503.02531, section 6)."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raydistill.metrics import Accuracy, Metric, find
from raydistill.report.comparison import Competitor, Spread, spread
from raydistill.report.predictions import methods_of
from raydistill.runs.view import StageView


@dataclass(frozen=True)
class TransferRow:
    """One model: what it learned from, and how well. `kept` and `epochs` are over replicas, `kept` None without early
    stopping; its train accuracy is the one of the epoch that was kept."""

    competitor: Competitor
    transfer: Mapping[str, Any]
    targets: str
    train: Spread | None
    test: Spread | None
    epochs: Spread | None
    kept: Spread | None

    @property
    def fraction(self) -> float:
        """Part of the training split."""
        written = self.transfer.get("fraction", 1.0)
        return float(written) if isinstance(written, int | float) else 1.0

    def part(self, names_of: Callable[[Sequence[int | str]], str]) -> str:
        """`10 %, without 3, unlabelled`."""
        parts = [f"{100 * self.fraction:.4g} %"]
        for option, word in (("only_classes", "only"), ("omit_classes", "without")):
            if isinstance(labels := self.transfer.get(option), list) and labels:
                parts.append(f"{word} {names_of(labels)}")
        parts += ["unlabelled"] if self.transfer.get("labelled") is False else []
        return ", ".join([*parts, *(["and a pool without labels"] if self.transfer.get("also") else [])])


@dataclass(frozen=True)
class TransferGroup:
    """All models of one architecture."""

    model: str
    rows: tuple[TransferRow, ...]

    @property
    def competitors(self) -> list[Competitor]:
        """The models, as the comparison knows them."""
        return [row.competitor for row in self.rows]

    @property
    def is_repeated(self) -> bool:
        """Whether there are replicas."""
        return any(len(competitor.results) > 1 for competitor in self.competitors)


def group_by_model(competitors: Iterable[Competitor]) -> Iterator[TransferGroup]:
    """The architectures of which models differ in their part of the data or in early stopping."""
    groups: dict[str, list[Competitor]] = {}
    for competitor in competitors:
        model = model_of(competitor.members[0])
        if model and competitor.results and not competitor.adjusted:
            groups.setdefault(json.dumps(model, sort_keys=True), []).append(competitor)
    for written, members in groups.items():
        rows = [_row(member) for member in members]
        settings = {(row.fraction, row.kept is not None) for row in rows}
        if len(settings) > 1:
            ordered = sorted(rows, key=lambda row: -row.fraction)
            yield TransferGroup(str(json.loads(written).get("name", "")), tuple(ordered))


def model_of(stage: StageView) -> Mapping[str, Any]:
    """The architecture that a stage trains; empty for a stage that trains none."""
    written = stage.config.get("student", stage.config.get("model"))
    return written if isinstance(written, dict) and "name" in written else {}


def _row(competitor: Competitor) -> TransferRow:
    first, results = competitor.results[0], competitor.results
    metric = _stopping_metric(first)
    kept = [_kept_epoch(stage, metric) for stage in results]
    train = [_value_at(stage, "train/accuracy", epoch) for stage, epoch in zip(results, kept, strict=True)]
    transfer = first.config.get("transfer")
    return TransferRow(
        competitor=competitor,
        transfer=transfer if isinstance(transfer, dict) else {},
        targets=_targets(first),
        train=spread([value for value in train if value is not None]),
        test=spread([value for stage in results if (value := stage.metric(Accuracy.on("test"))) is not None]),
        epochs=spread([max(epochs) for stage in results if (epochs := stage.curve("train/loss").epochs)]),
        kept=spread([epoch for epoch in kept if epoch is not None]) if metric else None,
    )


def _stopping_metric(stage: StageView) -> type[Metric] | None:
    """What early stopping looked at; None where nothing stopped."""
    stopping = stage.config.get("early_stopping")
    if not isinstance(stopping, dict):
        return None
    written = str(stopping.get("metric", Accuracy.name))
    own = stage.record.judged_by if stage.record else ()
    return next((metric.as_metric() for metric in own if metric.address == written), find(written))


def _kept_epoch(stage: StageView, metric: type[Metric] | None) -> float | None:
    """The first of the best epochs on validation; the last without early stopping (`metric` None)."""
    curve = stage.curve(metric.on("validation") if metric else "train/loss")
    if not curve.epochs:
        return None
    if metric is None:
        return max(curve.epochs)
    sign = 1.0 if metric.better == "min" else -1.0
    by_epoch = dict(zip(curve.epochs, curve.values, strict=True))
    return min(by_epoch, key=lambda epoch: (sign * by_epoch[epoch], epoch))


def _value_at(stage: StageView, metric: str, epoch: float | None) -> float | None:
    curve = stage.curve(metric)
    return dict(zip(curve.epochs, curve.values, strict=True)).get(epoch) if epoch is not None else None


def _targets(stage: StageView) -> str:
    """hard; or soft with the temperature and the weight that hard labels have beside it."""
    methods = methods_of(stage.config)
    for method in methods:
        if isinstance(temperature := method.get("temperature"), int | float):
            hard = method.get("hard_weight")
            mixed = f" + {hard:g} × hard" if isinstance(hard, int | float) and hard > 0 else ""
            return f"soft, T = {temperature:g}{mixed}"
    return "soft" if methods else "hard"
