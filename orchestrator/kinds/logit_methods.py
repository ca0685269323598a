"""Methods that compare logits otherwise than by one divergence, or learn labels from them."""

from typing import Annotated

from pydantic import Field, model_validator

from raydistill.kinds.method_options import MethodOptions, SoftTargetOptions, need_some_weight
from raydistill.plan.config import FINE_TEMPERATURE, Integer, NonNegative, Positive, Temperature
from raydistill.plan.config_errors import located_error


class OfLabelsOptions(SoftTargetOptions):
    """What methods whose soft terms look at the true labels, too, can be told."""

    @property
    def needs_labels(self) -> bool:
        """Whether the loss looks at the true labels."""
        return True


class DkdConfig(OfLabelsOptions):
    """The label's part of the divergence and that among the other classes, each with a weight of its own (DKD, Zhao et
    al., CVPR 2022, arXiv 2203.08679).

    With p and q the softened distributions of teacher and student, p̂ and q̂ those over the classes other than y:
    KL(p ‖ q) = KL(label against the rest) + (1 - p_y) · KL(p̂ ‖ q̂), where the second part all but vanishes for a sure
    teacher. loss = soft_weight · T² · (target_weight · first + other_weight · KL(p̂ ‖ q̂)) + hard_weight · CE.

    Settings: T = 4, weights 1, 8 and 1 are the release's for ResNet-32x4 → ResNet-8x4 on CIFAR-100; there
    `other_weight` is 8, 6 or 2 by the pair, on ImageNet 0.5 or 2 at T = 1: search it. The release raises the soft part
    over 20 epochs: `methods: [{method: labels}, {method: dkd, hard_weight: 0, ramp: {start: 0.05, end: 1, epochs:
    19}}]`.
    Published: CIFAR-100 (best epoch): ResNet-32x4 → ResNet-8x4 76.32, → ShuffleNetV2 77.07, WRN-40-2 → WRN-16-2 76.23;
    ImageNet, ResNet-34 → ResNet-18 71.70.
    Pitfalls: needs labels; without the ramp a large `other_weight` may diverge. With two classes there is one other
    class, and `other_weight` does nothing.
    Releases: forms 1 - q_y from probabilities, which is no number for a sure student (a margin of 200 in float32); here
    it is a sum of logarithms. Its table heads ShuffleNetV2's column with MobileNetV2.
    """

    word = "dkd"
    implementation = "raydistill.methods.dkd:Dkd"

    target_weight: NonNegative = 1.0
    """Of the label against the rest; the paper's α."""
    other_weight: NonNegative = 8.0
    """Of the distribution over the other classes; the paper's β."""

    @model_validator(mode="after")
    def _something_to_compare(self) -> "DkdConfig":
        need_some_weight(self, "target_weight", "other_weight", lack="nothing to compare")
        return self


class NkdConfig(OfLabelsOptions):
    """The label's cross-entropy, weighed by how sure the teacher is of it, and the others' distribution (NKD, Yang et
    al., ICCV 2023, arXiv 2303.13005).

    loss = soft_weight · (p_y · CE at T = 1 + other_weight · T² · KL(p̂ ‖ q̂)) + hard_weight · CE, with p̂ and q̂ the
    softened distributions over the classes other than y.

    Settings: T = 1 and weights 1, 1.5 and 1 are the release's for ImageNet; T = 3 and `other_weight: 3.5` for
    CIFAR-100.
    Published: ImageNet: ResNet-34 → ResNet-18 69.90 alone, 71.96; ResNet-50 → MobileNet 69.21 alone, 72.58.
    Pitfalls: needs labels. The first term never holds a student back that is surer than its teacher, and is silent
    where the teacher is wrong; with two classes the second one is 0.
    Releases: the cross-entropy of p̂ and q̂ in place of their divergence has the same gradient and is not 0 at a match;
    under mixup it sees the larger label alone, here both.
    """

    word = "nkd"
    implementation = "raydistill.methods.nkd:Nkd"

    temperature: Temperature = 1.0
    """Divides the logits of both before the softmax over the other classes."""
    other_weight: NonNegative = 1.5
    """Of the distribution over the other classes; the paper's γ."""


class DistConfig(SoftTargetOptions):
    """Correlations in place of a divergence: within a sample's classes, and of a class over the batch (DIST, Huang et
    al., NeurIPS 2022, arXiv 2205.10536).

    loss = soft_weight · T² · (row_weight · (1 - mean over samples of ρ(p_b, q_b)) + column_weight · (1 - mean over
    classes of ρ(p^c, q^c))) + hard_weight · CE, with Pearson's ρ between softened probabilities. For teachers that are
    much stronger than the student, where an exact match asks too much.

    Settings: T = 4 and weights 2, 1, 1 and 1 are the authors' for CIFAR-100; for ImageNet T = 1.
    Published: CIFAR-100 (mean of several runs): ResNet-32x4 → ResNet-8x4 76.31, → ShuffleNetV2 77.35; ImageNet,
    ResNet-34 → ResNet-18 72.07.
    Pitfalls: the classes' term takes a batch of dozens: a single sample has no correlation, and columns in which the
    teacher says everywhere the same count for nothing. Keep a hard or a soft term beside it: ρ does not see how sure a
    student is. With two classes only the columns teach.
    Releases: columns of rounding errors count like others; here a teacher's column without spread is left out.
    """

    word = "dist"
    implementation = "raydistill.methods.dist:Dist"
    couples_samples = True
    passes_over_unlabelled = True

    soft_weight: NonNegative = 2.0
    """Of both correlations."""
    row_weight: NonNegative = 1.0
    """Of the correlation over the classes of a sample; the paper's β."""
    column_weight: NonNegative = 1.0
    """Of the correlation over the samples for a class; the paper's γ."""

    @model_validator(mode="after")
    def _something_to_compare(self) -> "DistConfig":
        need_some_weight(self, "row_weight", "column_weight", lack="nothing to compare")
        return self


class MultiLevelConfig(MethodOptions):
    """Softened distributions at several temperatures, and by them what samples, and what classes, of a batch have in
    common (MLKD, Jin et al., CVPR 2023), of one view.

    With P_T and Q_T (B, C) the probabilities of teacher and student at T: loss = soft_weight · Σ_T (instance_weight ·
    T² · KL(P_T ‖ Q_T) + batch_weight · ‖P_T P_Tᵀ - Q_T Q_Tᵀ‖² / B + class_weight · ‖P_Tᵀ P_T - Q_Tᵀ Q_T‖² / C)
    + hard_weight · CE.

    Settings: T = 2, ..., 6 and weights 0.9 and 0.1 are the release's for CIFAR-100, there with learning rates of 0.025
    or 0.01 for 240, 480 or 960 epochs, and with a second, strongly augmented view.
    Published: none of one view. Of two, by those who came after (best epoch): ResNet-32x4 → ResNet-8x4 77.08, WRN-40-2
    → WRN-16-2 76.63.
    Pitfalls: each worker compares its own part of a batch. Classes are compared by sums over the batch: a quarter of
    the samples makes that term a sixteenth. Five divergences with T² are some five times those of `hinton`.
    Releases: its masks multiply means, so that they halve terms and select no samples; two of five temperatures of the
    strong view take the weak one's logits, and that view's two terms of the batch are computed and dropped.
    """

    word = "multi_level"
    implementation = "raydistill.methods.multi_level:MultiLevel"
    couples_samples = True
    passes_over_unlabelled = True

    temperatures: Annotated[tuple[Temperature, ...], Field(min_length=1)] = (2.0, 3.0, 4.0, 5.0, 6.0)
    """Each divides the logits of both, and the terms are summed over them."""
    soft_weight: NonNegative = 0.9
    """Of all that is compared with the teachers."""
    hard_weight: NonNegative = 0.1
    """Of the cross-entropy with the true labels."""
    instance_weight: NonNegative = 1.0
    """Of the divergence, sample by sample."""
    batch_weight: NonNegative = 1.0
    """Of the products between samples."""
    class_weight: NonNegative = 1.0
    """Of the products between classes."""

    @model_validator(mode="after")
    def _something_to_compare(self) -> "MultiLevelConfig":
        need_some_weight(self, "soft_weight", "hard_weight")
        weights = self.instance_weight, self.batch_weight, self.class_weight
        if self.soft_weight and not any(weights):
            raise located_error(
                "`instance_weight`, `batch_weight` and `class_weight` are all 0: nothing to compare; raise one",
                "instance_weight",
            )
        return self

    @property
    def needs_labels(self) -> bool:
        """Whether the loss looks at the true labels."""
        return self.hard_weight > 0

    @property
    def hears_teacher(self) -> bool:
        return self.weight > 0 and self.soft_weight > 0


class WsldConfig(OfLabelsOptions):
    """Soft labels count less for samples that the student knows as well as its teacher (WSLD, Zhou et al., ICLR 2021,
    arXiv 2102.00650).

    loss = soft_weight · T² · mean of ω_b · KL(p_b ‖ q_b) + hard_weight · CE, with ω_b = 1 - exp(-CE_b of the student /
    CE_b of the teacher) at T = 1, without gradient: 0 where the student is sure and the teacher is not, 0.63 where they
    are level, 1 where the student is worse.

    Settings: T = 2 and weights 2.5 and 1 are the release's for ImageNet; T = 4 and 2.25 for CIFAR-100 (cls_KD).
    Published: ImageNet: ResNet-34 → ResNet-18 69.75 alone, 72.04; ResNet-50 → MobileNet 68.87 alone, 71.52.
    Pitfalls: needs labels. A teacher that knows every label for sure makes ω 1 everywhere: plain soft targets.
    Releases: runs its teacher in training mode and with gradients; here it is in evaluation mode. A cross-entropy in
    place of KL has the same gradient; the 1,000 classes are written into the loss.
    """

    word = "wsld"
    implementation = "raydistill.methods.wsld:Wsld"

    temperature: Temperature = 2.0
    """Divides the logits of both before the softmax."""
    soft_weight: NonNegative = 2.5
    """Of the weighed divergence."""


class TeacherLabelsConfig(MethodOptions):
    """The teachers' own labels: cross-entropy with the class that they find most probable (hard distillation of DeiT,
    Touvron et al., ICML 2021, arXiv 2012.12877).

    loss = weight · CE(argmax of the teachers' mean probabilities, softmax(z)); of equal ones the first class.

    Settings: as in the paper beside the true labels: `methods: [{method: labels, weight: 0.5}, {method: teacher_labels,
    weight: 0.5}]`. Alone on unlabelled data it is pseudo-labelling.
    Published: ImageNet, RegNetY-16GF → DeiT-Ti 72.2 alone, 74.5; DeiT-S 79.9, 81.2; DeiT-B 81.8, 83.4, with a token of
    its own for what the teacher says.
    Pitfalls: where a teacher is right on all that it is asked, it adds nothing to the labels; under mixup its label is
    that of the mixed input.
    Releases: the soft variant beside it is divided by the number of classes: that soft targets are worth nothing there
    says as much of the weight as of them.
    """

    word = "teacher_labels"
    implementation = "raydistill.methods.teacher_labels:TeacherLabels"


class CurriculumTemperatureConfig(MethodOptions):
    """A temperature that learns against the student: it ascends the soft loss that the student descends, and more so by
    the epoch (CTKD, Li et al., AAAI 2023, arXiv 2211.16231).

    loss = soft_weight · T² · KL(p^T ‖ q^T) + hard_weight · CE, with T = lowest_temperature + temperature_range · σ(θ)
    in both softmaxes and in T². θ starts at 1, which is T = 15.6, trains with the student's optimizer without weight
    decay, and gets minus λ times its gradient; λ = (1 - cos(π · min(e, E) / E)) / 2 in epoch e = 1, 2, … of E.
    `temperature` is recorded beside the losses.

    Settings: the release's for CIFAR-100; for ImageNet `curriculum_epochs: 5`.
    Published: CIFAR-100 (best epoch): WRN-40-2 → WRN-16-2 75.45, ResNet-110 → ResNet-32 73.52; ImageNet, ResNet-34 →
    ResNet-18 71.32. In the authors' figures T ends between 3.4 and 4, 0.2 to 0.4 points above a T that was searched
    for.
    Pitfalls: search T first: there is little left to gain. On several workers there is one temperature. With
    standardised logits it falls to its lower bound within four epochs.
    Releases: each worker has a temperature of its own, and weight decay pulls it to 11.
    """

    word = "curriculum_temperature"
    implementation = "raydistill.methods.curriculum_temperature:CurriculumTemperature"
    passes_over_unlabelled = True

    lowest_temperature: Temperature = 1.0
    """What the temperature stays above."""
    temperature_range: Positive = 20.0
    """How far above it the temperature can go."""
    curriculum_epochs: Annotated[Integer, Field(ge=1)] = 10
    """How long it takes until the temperature's gradient has its full size; the paper's E."""
    soft_weight: Positive = 0.9
    """Of the loss against the teachers' soft targets."""
    hard_weight: NonNegative = 0.1
    """Of the cross-entropy with the true labels."""

    @model_validator(mode="after")
    def _temperature_is_exact(self) -> "CurriculumTemperatureConfig":
        if self.lowest_temperature + self.temperature_range > FINE_TEMPERATURE:
            message = (
                f"the temperature could pass {FINE_TEMPERATURE:g}, where float32 does not suffice; lower"
                " `temperature_range` or `lowest_temperature`"
            )
            raise located_error(message, "temperature_range")
        return self

    @property
    def needs_labels(self) -> bool:
        """Whether the loss looks at the true labels."""
        return self.hard_weight > 0
