"""Do the features that methods compare suit each other? Found out before anything runs, on models without memory."""

import torch

from raydistill.errors import StageError
from raydistill.plan.model_config import ModelConfig
from raydistill.plan.order import Graph, Locate, Node
from raydistill.plan.stage_configs import AdjustClassBiasConfig, DistillConfig
from raydistill.stages.distill import build_method, setting_of
from raydistill.tasks.task import Task
from raydistill.training import model_files
from raydistill.training.method import Setting


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
        teachers = [model_files.build(_model_of(graph.nodes[name], graph), task) for name in config.teachers]
    return setting_of(config, task, student, teachers)


def _model_of(node: Node, graph: Graph) -> ModelConfig:
    """The architecture of the model that a stage makes."""
    if isinstance(node.config, AdjustClassBiasConfig):
        return _model_of(graph.nodes[node.config.model], graph)
    model: ModelConfig = node.config.student if isinstance(node.config, DistillConfig) else node.config.model
    return model
