"""The table of the kinds of stages. Their classes say what each can be told; their functions are in `stages/`."""

from raydistill.kinds.compare import CompareModelsConfig
from raydistill.kinds.data_free import (
    DistillWithGeneratorConfig,
    RecordStatisticsConfig,
    SynthesizeConfig,
)
from raydistill.kinds.distill import DistillConfig
from raydistill.kinds.evaluate import AdjustClassBiasConfig, EvaluateConfig
from raydistill.kinds.external import ExternalTargetsConfig
from raydistill.kinds.online import CodistillConfig, SelfDistillConfig, TrainBranchesConfig, TrainPeersConfig
from raydistill.kinds.pretrained import PretrainedConfig
from raydistill.kinds.quantize import QuantizeConfig
from raydistill.kinds.reuse import ReuseClassifierConfig
from raydistill.kinds.specialists import ConfusionClustersConfig, TrainSpecialistsConfig
from raydistill.kinds.targets import CombineTargetsConfig, PredictTargetsConfig
from raydistill.kinds.train import TrainConfig

STAGES = (
    TrainConfig,
    DistillConfig,
    PretrainedConfig,
    PredictTargetsConfig,
    CombineTargetsConfig,
    ExternalTargetsConfig,
    EvaluateConfig,
    ConfusionClustersConfig,
    TrainSpecialistsConfig,
    AdjustClassBiasConfig,
    RecordStatisticsConfig,
    SynthesizeConfig,
    DistillWithGeneratorConfig,
    TrainBranchesConfig,
    TrainPeersConfig,
    CodistillConfig,
    SelfDistillConfig,
    ReuseClassifierConfig,
    CompareModelsConfig,
    QuantizeConfig,
)
