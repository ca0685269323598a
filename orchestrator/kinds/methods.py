"""The table of distillation methods: what each can be told, and where it is implemented, one file each."""

from raydistill.kinds.classifier_methods import ClassAttentionConfig, SoftmaxRegressionConfig
from raydistill.kinds.committee_methods import (
    AeKdConfig,
    CaMkdConfig,
    EbkdConfig,
    TeacherSwitchingConfig,
)
from raydistill.kinds.connector_methods import (
    MaskedGenerationConfig,
    ReviewConfig,
    VariationalInformationConfig,
)
from raydistill.kinds.feature_methods import FspConfig, HintsConfig, OfdConfig, SemckdConfig
from raydistill.kinds.logit_methods import (
    CurriculumTemperatureConfig,
    DistConfig,
    DkdConfig,
    MultiLevelConfig,
    NkdConfig,
    TeacherLabelsConfig,
    WsldConfig,
)
from raydistill.kinds.map_methods import AttentionTransferConfig, NeuronSelectivityConfig
from raydistill.kinds.method_options import MethodOptions, SoftTargetOptions
from raydistill.kinds.relation_methods import (
    ContrastiveBankConfig,
    ContrastiveConfig,
    CorrelationCongruenceConfig,
    ProbabilisticTransferConfig,
    ProjectedConfig,
    RelationalConfig,
    SimilarityPreservingConfig,
    TripletConfig,
    TripletLogitsConfig,
)
from raydistill.plan.config import Boolean, NonNegative


class HintonConfig(SoftTargetOptions):
    """Soft targets: match the teacher's softened distribution (Hinton et al. 2015, arXiv 1503.02531).

    loss = soft_weight · T² · KL(softmax(v/T) ‖ softmax(z/T)) + hard_weight · CE(y, softmax(z)), with student logits z,
    teacher logits v, labels y.

    Settings: T = 4 and weights 0.9 and 0.1 are those of the common CIFAR-100 benchmark (RepDistiller); the paper found
    a considerably lower weight on the hard term best, T of 2.5 to 4 for narrow networks, and no difference above 8 for
    wide ones.
    Published: MNIST, errors of 10,000: teacher 67, student alone 146, taught at T = 20 74. CIFAR-100 (RepDistiller):
    ResNet-32x4 (79.42) → ResNet-8x4 72.50 alone, 73.33; with `standardize` 76.28 (last epoch of the release's log).
    Pitfalls: a teacher that is sure of all that it is asked says hardly more than the labels; without T² the soft term
    fades with T; with `standardize` a `hard_weight` of 0 leaves the logits' size to nobody.
    Releases: toolboxes average the divergence over classes too, which makes it C times smaller (DeiT's soft variant);
    torchdistill's leaves T² out where no hard term is asked for.
    """

    word = "hinton"
    implementation = "raydistill.methods.hinton:Hinton"
    passes_over_unlabelled = True

    soft_weight: NonNegative = 0.9
    hard_weight: NonNegative = 0.1
    scale_by_temperature_squared: Boolean = True
    """Multiply the soft loss by T², so that its gradients keep their size whatever the temperature."""

    @property
    def looks_at_all_classes(self) -> tuple[str, str, str] | None:
        if self.standardize:
            return "standardize", "a deviation is one over all classes", "leave it out"
        reason = "a tail below T = 1 would be a sum over all classes"
        return ("temperature", reason, "set it to 1 or more") if self.temperature < 1 else None


class LabelsConfig(MethodOptions):
    """The true labels: beside methods that look at features or relations alone, or whose soft term has a ramp.

    loss = weight · CE(y, softmax(z)). FitNets' second phase (arXiv 1412.6550), a soft term of λ = 4 that fades to 1:
      methods:
        - {method: labels}
        - {method: hinton, temperature: 3, soft_weight: 1, hard_weight: 0, scale_by_temperature_squared: false,
           ramp: {start: 4, end: 1, epochs: 240}}
    Alone it is plain training, for which `train` needs no teacher.

    Settings: weight 1 beside features and relations in RepDistiller's tables.
    Published: CIFAR-100 (RepDistiller), alone: ResNet-8x4 72.50, WRN-16-2 73.26, VGG-8 70.36.
    Pitfalls: a method with a `hard_weight` has the labels already: beside it they count twice.
    Releases: none that we know of.
    """

    word = "labels"
    implementation = "raydistill.methods.labels:Labels"
    passes_over_unlabelled = True

    @property
    def needs_labels(self) -> bool:
        return True

    @property
    def hears_teacher(self) -> bool:
        return False

    @property
    def looks_at_logits(self) -> bool:
        return False

    @property
    def looks_at_all_classes(self) -> None:
        return None


METHODS = (
    HintonConfig,
    LabelsConfig,
    DkdConfig,
    NkdConfig,
    DistConfig,
    MultiLevelConfig,
    WsldConfig,
    CurriculumTemperatureConfig,
    TeacherLabelsConfig,
    HintsConfig,
    FspConfig,
    SemckdConfig,
    OfdConfig,
    TripletConfig,
    TripletLogitsConfig,
    RelationalConfig,
    SimilarityPreservingConfig,
    ProbabilisticTransferConfig,
    CorrelationCongruenceConfig,
    ContrastiveConfig,
    ContrastiveBankConfig,
    ProjectedConfig,
    AttentionTransferConfig,
    NeuronSelectivityConfig,
    ClassAttentionConfig,
    SoftmaxRegressionConfig,
    ReviewConfig,
    VariationalInformationConfig,
    MaskedGenerationConfig,
    EbkdConfig,
    CaMkdConfig,
    AeKdConfig,
    TeacherSwitchingConfig,
)
