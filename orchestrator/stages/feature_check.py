"""Do the features that methods compare suit each other? Found out before anything runs, on models without memory."""

import torch

from orchestrator.errors import StageError
from orchestrator.plan.model_config import ModelConfig
from orchestrator.plan.order import Graph, Locate, Node
from orchestrator.plan.stage_configs import AdjustClassBiasConfig, DistillConfig
from orchestrator.stages.distill import build_method
from orchestrator.training import model_files
from orchestrator.training.method import Features, Setting
from tasks.task import Task


def check_features(graph: Graph, task: Task, locate: Locate) -> None:
    """`PlanError` for a method whose features are not there, or whose shapes do not suit."""
    for node in graph.nodes.values():
        if isinstance(node.config, DistillConfig) and node.config.needs_features:
            setting = _setting(node.config, graph, task)
            for index, options in enumerate(node.config.all_methods):
                try:
                    build_method(node.config.replace(method=options, methods=()), setting)
                except (NotImplementedError, RuntimeError):
                    continue  # it needs the numbers of a model, which only the stage has
                except StageError as error:
                    key = ("methods", index) if node.config.methods else ("method",)
                    raise locate(("stages", node.stage, *key), error.message) from None


def _setting(config: DistillConfig, graph: Graph, task: Task) -> Setting:
    with torch.device("meta"):
        student = model_files.build(config.student, task)
        teacher = model_files.build(_model_of(graph.nodes[config.teachers[0]], graph), task)
    return Setting(
        Features(student, task.input_shape),
        Features(teacher, task.input_shape),
        num_classes=config.student.num_classes or task.num_classes,
        batch_size=config.batch_size,
        epochs=config.epochs,
    )


def _model_of(node: Node, graph: Graph) -> ModelConfig:
    """The architecture of the model that a stage makes."""
    if isinstance(node.config, AdjustClassBiasConfig):
        return _model_of(graph.nodes[node.config.model], graph)
    model: ModelConfig = node.config.student if isinstance(node.config, DistillConfig) else node.config.model
    return model
