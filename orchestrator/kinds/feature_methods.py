"""Methods that compare features of a student with those of a live teacher."""

from typing import Literal

from pydantic import Field

from raydistill.kinds.method_options import MethodOptions
from raydistill.plan.config import NonNegative


class HintsConfig(MethodOptions):
    """Hints: a regressor on a student's feature matches the teacher's (FitNets, Romero et al. 2015, arXiv 1412.6550).

    loss = weight · ½ ‖u_h(x) - r(v_g(x))‖², summed over the feature and averaged over the batch (`reduction: sum`, the
    paper's eq. 3), or the mean of squares (`mean`). By default the features are those of the middle stages. The
    `regressor` r is the `paper`'s: a convolution without padding whose kernel takes the student's grid to the teacher's
    (transposed where that is larger), and ReLU; linear for flat features. Or that of the common `toolbox`
    (RepDistiller): 3x3 with stride 2 to a grid of half the size, 4x4 transposed to twice the size, otherwise as the
    paper's; then batch norm and ReLU. From 16 channels of 32x32 to 32 of 16x16 the one has 148,000 parameters, the
    other 4,704.

    Settings: what toolboxes call FitNet is one phase, `{method: hints, regressor: toolbox, reduction: mean, weight:
    100}` beside labels (RepDistiller), or beside labels and soft targets (SemCKD's tables). The paper's two phases are
    two stages: hints alone, then `initial: <that stage>` with labels and a fading soft term (`distill explain labels`);
    layers that no loss reaches are left alone.
    Published: CIFAR-100 (RepDistiller, one phase): ResNet-32x4 → ResNet-8x4 73.50, WRN-40-2 → WRN-16-2 73.58, ResNet-50
    → MobileNetV2 63.16, below the student alone (64.60).
    Pitfalls: the paper's sum grows with the maps, the toolboxes' mean does not: a weight belongs to one of them. Far
    from the output a large weight holds the student to maps that it cannot make.
    Releases: RepDistiller's and SemCKD's columns of this name are two methods: only the latter adds soft targets.
    """

    word = "hints"
    implementation = "raydistill.methods.hints:Hints"
    needs_features = True

    student_feature: str | None = Field(None, description="the middle stage when left out")
    teacher_feature: str | None = Field(None, description="the middle stage when left out")
    reduction: Literal["sum", "mean"] = "sum"
    """The sum of squares over a feature, or their mean."""
    regressor: Literal["paper", "toolbox"] | None = Field(None, description="the paper's when left out")


class FspConfig(MethodOptions):
    """Flow between layers (FSP, Yim et al., CVPR 2017): Gram matrices of two features match the teacher's.

    loss = weight · mean over the batch of Σ_k ‖G_k^T - G_k^S‖² (`reduction: mean`: divided by the size of G), with G =
    Σ over places of F1 F2ᵀ / (h · w); the larger of two maps is pooled to the smaller grid (`max`, as in the paper, or
    `average`). Pairs are (input, output) of sections, one for each size of maps as in the paper: by default `stem` (the
    first layer) with the first stage's output, and each stage's output with that of the stage before.

    Settings: the paper trains with this loss alone and a small learning rate, then on labels with `initial`; in one
    phase, with `reduction: mean`, beside soft targets.
    Published: CIFAR-10, 26 → 8 layers: 91.91, 87.91 alone, FitNet 88.57, FSP 88.70; CIFAR-100, 32 → 14 layers: 64.06,
    58.65, 61.28, 63.33.
    Pitfalls: channels must be equal. Behind ReLU G has no negative entries and grows with the width, so that the sum
    wants a small learning rate.
    Releases: RepDistiller pools by averages and takes a mean; its weight on the command line has no effect in the
    second phase. torchdistill sums lengths of columns that are not squared.
    """

    word = "fsp"
    implementation = "raydistill.methods.fsp:Fsp"
    needs_features = True

    student_pairs: tuple[tuple[str, str], ...] | None = Field(
        None, description="(input, output) of each section"
    )
    teacher_pairs: tuple[tuple[str, str], ...] | None = Field(
        None, description="as the student's when left out"
    )
    pool: Literal["max", "average"] = "max"
    """How the larger of two maps is brought to the smaller grid."""
    reduction: Literal["sum", "mean"] = "sum"
    """The sum of squares over a Gram matrix, or their mean."""

    @property
    def revision(self) -> int:
        """2: the default pairs begin with the stem's."""
        return 2 if self.student_pairs is None else 1


class SemckdConfig(MethodOptions):
    """Semantic calibration (SemCKD, Chen et al., AAAI 2021): every stage of a student learns from all of the teacher's.

    How much from which is decided per sample by attention, so that no pairs of layers need to be chosen by hand.
    loss = weight · mean over samples and student stages s of Σ_t α_st · mean of (P_st(F_s) - F_t)², with
    α_s· = softmax over t of ⟨Q_s, K_t⟩; Q and K are unit vectors, made by small networks from each sample's inner
    products with the rest of the batch; P_st are 1x1, 3x3, 1x1 convolutions; the larger map is pooled to the smaller.

    Settings: weight 400 on CIFAR-100, 50 on ImageNet (release), with teachers of 64 to 512 channels. A channel pulls
    with weight / channels, so that a narrow teacher wants less: with 6 channels and a learning rate of 0.05, 400
    diverges. The paper adds labels and soft targets, both with weight 1; alone, this trains no classifier: `methods:
    [{method: hinton, temperature: 4, soft_weight: 1, hard_weight: 1}, {method: semckd}]`.
    Published: CIFAR-100: ResNet-32x4 (79.42) → ResNet-8x4 73.09, soft targets 74.42, SemCKD 76.23; → VGG-8 70.46,
    72.73, 75.27.
    Pitfalls: the batch of one worker is built into the networks behind Q and K, so that other numbers of workers train
    another thing; it must have 4 samples. Energies lie in [-1, 1]: attention never gets sharp, with 3 stages it stays
    in [0.063, 0.787]. Nothing but the loss trains it, so it goes to what is easiest to match: every stage of a student
    of `configs/fashion_compare.yaml` ends at that bound on the teacher's first stage (map in the report). Its mean over
    an epoch is logged as `train/semckd/attention/STUDENT_STAGE/TEACHER_STAGE`.
    Releases: skips a shorter last batch, in which here the samples that are not there count as zeros; its unit vectors
    are no numbers where a query is 0.
    """

    word = "semckd"
    implementation = "raydistill.methods.semckd:Semckd"
    couples_samples = True
    needs_features = True

    weight: NonNegative = 400.0
    student_features: tuple[str, ...] | None = Field(
        None, min_length=1, description="all stages when left out"
    )
    teacher_features: tuple[str, ...] | None = Field(
        None, min_length=1, description="all stages when left out"
    )


class OfdConfig(MethodOptions):
    """Overhaul of feature distillation (OFD, Heo et al., ICCV 2019): stage ends are compared before their ReLU.

    The teacher's feature passes a margin ReLU, T = max(t, m), with the mean m of each channel's negative responses; a
    1x1 convolution and batch norm bring the student's feature s to it; where s ≤ T ≤ 0 both are silent, and nothing is
    to be learned: loss = weight · Σ_l 2^(l - L) / B · Σ over s > T or T > 0 of (T - s)², summed over samples, channels
    and places. m = μ - σ φ(μ/σ) / Φ(-μ/σ) follows from the bias μ and scale σ of the batch norm that made the feature
    (in a residual block the branch's last, as in the release); -3σ if a channel is hardly ever negative.

    Settings: weight 1e-3 on 32x32 inputs, 1e-4 on 224x224 (release), beside labels alone: `methods: [{method: labels},
    {method: ofd}]`. `teacher_bn: batch` is the release's choice: the teacher, a copy of this stage's own, normalises
    with the statistics of each batch, of each worker's part of it; `running`: with its stored ones. Other methods of
    the stage see the same teacher.
    Published: CIFAR-100 error: WRN-28-4 (21.09) → WRN-16-4 22.72 alone, 20.89; → WRN-16-2 27.32, 24.08.
    Pitfalls: needs as many stages, equal grids, and batch norm in the teacher; the loss is a sum, so its size grows
    with the maps: lower the weight for larger inputs. Without labels no classifier is trained.
    Releases: its teacher's running statistics drift along, those of a wide ResNet twice a step; margins of residual
    blocks leave the shortcut out, as here.
    """

    word = "ofd"
    implementation = "raydistill.methods.ofd:Ofd"
    couples_samples = True
    needs_features = True

    weight: NonNegative = 1e-3
    teacher_bn: Literal["batch", "running"] = "batch"
    """Which statistics the teacher's batch norm uses: of each batch, or the stored ones."""
    student_features: tuple[str, ...] | None = Field(
        None, min_length=1, description="all stages before their ReLU when left out"
    )
    teacher_features: tuple[str, ...] | None = Field(
        None, min_length=1, description="all stages before their ReLU when left out"
    )
