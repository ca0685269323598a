"""What a plan may say but hardly means: a line each, to be printed and not refused."""

from collections.abc import Iterator

from raydistill.kinds.stage_bases import TrainingConfig
from raydistill.kinds.stages import DistillConfig
from raydistill.plan.order import Graph, Locate
from raydistill.plan.schema import Plan


def advice(plan: Plan, locate: Locate) -> Iterator[str]:
    """Lines about a plan that can be run."""
    starts = {
        stage.initial.rpartition(".")[0] or str(stage.initial)
        for stage in plan.stages.values()
        if isinstance(stage, TrainingConfig) and stage.initial is not None
    }
    for name, stage in plan.stages.items():
        if not isinstance(stage, DistillConfig):
            continue
        place = ("stages", name, "methods" if stage.methods else "method")
        if not stage.trains_classifier and name not in starts:
            yield locate(
                place,
                "trains no classifier, and no stage goes on from here with `initial`: the model will guess; add labels"
                " (`{method: labels}`) or soft targets (`{method: hinton}`)",
            ).message
        if not stage.changes and not any(method.hears_teacher for method in stage.all_methods):
            yield locate(
                place,
                "the teacher is run and not heard: the student learns from the labels alone; raise `soft_weight` or the"
                " method's `weight`, or write `stage: train`",
            ).message


def shared_folders(graph: Graph) -> Iterator[str]:
    """A line for stages of the user's own that are equal to the last digit: one result stands for all of them."""
    equals: dict[str, list[str]] = {}
    for name, node in graph.nodes.items():
        if not node.inserted:
            equals.setdefault(node.folder, []).append(name)
    for names in equals.values():
        if len(names) > 1:
            listed = ", ".join(f"`{name}`" for name in names[:-1]) + f" and `{names[-1]}`"
            yield (
                f"stages {listed} have equal settings and share one result; give one another `seed` if they are to"
                " differ"
            )
