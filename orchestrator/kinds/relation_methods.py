"""Methods that compare embeddings: as they are, or the relations between the samples of a batch."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from raydistill.kinds.method_options import MethodOptions, need_some_weight
from raydistill.plan.config import Boolean, Integer, NonNegative, Number, Positive, Temperature
from raydistill.plan.config_errors import located_error


class EmbeddingOptions(MethodOptions):
    """What methods that look at one embedding of each network can be told."""

    student_feature: str = "embedding"
    """The student's feature that is compared."""
    teacher_feature: str = "embedding"
    """The teacher's feature that it is compared with."""

    needs_features = True

    @property
    def stored_features(self) -> tuple[str, ...]:
        return (self.teacher_feature,)

    @property
    def looks_at_all_classes(self) -> None:
        """It looks at none."""
        return None


class TripletConfig(EmbeddingOptions):
    """Triplets of embeddings with the teacher's margin (Feng et al. 2019, "Triplet distillation for deep face
    recognition", arXiv 1905.04457).

    Samples of one class shall be closer than samples of different ones, by a margin that is larger where the teacher
    sees them further apart. loss = weight · mean over anchors of max(D(a,p) - D(a,n) + F(d), 0), D and 𝒯 squared
    distances of the student's and the teacher's L2-normalised embeddings, d = max(𝒯(a,n) - 𝒯(a,p), 0) and
    F(d) = min_margin + (max_margin - min_margin) · d / max of d. Batch-hard: p is the farthest sample of the anchor's
    class in the student's embedding, n the nearest of another. Margins 0.2 and 0.5 and the squared distance are from
    secondary sources.

    Settings: margins 0.2 and 0.5 and the squared distance are from secondary sources.
    Published: none that compare: the paper's are of face recognition (ResNet-100 → slim MobileFaceNet).
    Pitfalls: needs labels, and batches with several samples of a class; an anchor without p or n counts for nothing,
    nor does the class of a mixup partner. Sizes may differ. Each worker mines its own part of a batch. The classifier
    gets no gradient: add `{method: labels}`.
    Releases: there is no public one.
    """

    word = "triplet"
    implementation = "raydistill.methods.triplet:Triplet"
    couples_samples = True

    min_margin: NonNegative = 0.2
    """Where the teacher sees no difference."""
    max_margin: NonNegative = 0.5
    """Where the teacher sees the largest difference of the batch."""

    @model_validator(mode="after")
    def _margins_are_in_order(self) -> "TripletConfig":
        if self.max_margin < self.min_margin:
            raise located_error(
                "`max_margin` is below `min_margin`; raise the one or lower the other", "max_margin"
            )
        return self

    @property
    def needs_labels(self) -> bool:
        """Whether the loss looks at the true labels."""
        return True


class TripletLogitsConfig(MethodOptions):
    """Triplets of logits around the teacher's (Oki et al. 2020, "Triplet loss for knowledge distillation",
    arXiv 2004.08116).

    The student's logits z of a sample come closer to the teacher's v of it than the student's logits z' of a sample of
    another class. loss = weight · mean over samples of max(‖v - z‖ - ‖v - z'‖ + margin, 0). z' comes from the
    same batch: of another class, drawn first among those that are there, any sample (`random`, as published, there from
    the whole split with a second forward pass); or the sample of another class that is nearest to v (`hard`). Several
    teachers speak through their mean logits.

    Settings: the paper's sum is `methods: [{method: hinton, temperature: 1, soft_weight: 1, hard_weight: 1}, {method:
    triplet_logits, weight: 2}]`, CIFAR-10, SGD 0.01, 100 epochs, batches of 100.
    Published: none that compare: see Releases.
    Pitfalls: needs labels. The distance is not blind to a constant added to all logits, as soft targets are: fused
    targets, stored as logarithms of probabilities, pull at the student's level too.
    Releases: leaves its teacher untrained (the line that loads it is commented out) and fails where it builds the
    negatives.
    """

    word = "triplet_logits"
    implementation = "raydistill.methods.triplet_logits:TripletLogits"
    couples_samples = True

    margin: NonNegative = 5.0
    """By how much nearer the own logits shall be than another sample's."""
    negative: Literal["random", "hard"] = "random"
    """Which other sample: any of another class, or the nearest to the teacher's logits."""

    @property
    def revision(self) -> int:
        """2: a random negative's class is drawn before the sample."""
        return 2 if self.negative == "random" else 1

    @property
    def needs_labels(self) -> bool:
        """Whether the loss looks at the true labels."""
        return True


class RelationalConfig(EmbeddingOptions):
    """Distances and angles between samples (RKD, Park et al., CVPR 2019, arXiv 1904.05068).

    The student's embeddings lie to each other as the teacher's do, up to scale, rotation and place. loss = weight ·
    (distance_weight · mean over pairs of h(ψ_D^S - ψ_D^T) + angle_weight · mean over triples of h(ψ_A^S - ψ_A^T)), with
    ψ_D(i,j) = ‖f_i - f_j‖ / mean distance of two samples, ψ_A(i,j,k) = cos of the angle at j, h smooth L1. Weights 25
    and 50 are those of the CIFAR-100 benchmark (RepDistiller), there beside cross-entropy of weight 1.

    Settings: weights 25 and 50 are those of the CIFAR-100 benchmark (RepDistiller), there beside cross-entropy of
    weight 1.
    Published: CIFAR-100 (RepDistiller): ResNet-32x4 → ResNet-8x4 71.90, below the student alone (72.50); WRN-40-2 →
    WRN-16-2 73.35.
    Pitfalls: angles take the batch's size cubed of memory and time: 64 samples 1 MB, 512 samples 0.5 GB. Each worker
    compares its own part of a batch. A single sample has no relations: zero loss. Needs no labels; sizes may differ.
    Releases: toolboxes leave equal embeddings out of the mean distance; a square root of 0 has no gradient without an
    ε.
    """

    word = "relational"
    implementation = "raydistill.methods.relational:Relational"
    couples_samples = True

    distance_weight: NonNegative = 25.0
    """Of distances between pairs."""
    angle_weight: NonNegative = 50.0
    """Of angles between triples."""

    @property
    def revision(self) -> int:
        """2: samples with equal embeddings count in the mean distance."""
        return 1 if self.distance_weight == 0 else 2

    @model_validator(mode="after")
    def _something_to_compare(self) -> "RelationalConfig":
        need_some_weight(self, "distance_weight", "angle_weight")
        return self


class ProjectedConfig(EmbeddingOptions):
    """The teacher's embedding itself, of any network: without labels, and without classes in common (the form in which
    LightlyTrain, Theia and VkD, Miles et al. 2024, distil foundation models).

    loss = weight · d(P(f), N(g)): the student's feature f through a projector P that is trained beside it and left
    behind, the teacher's g normalised by N; d a mean over samples and, but for the cosine, over entries. `layer_norm`
    and `smooth_l1` are VkD's; `unit` with `cosine` suits embeddings that are compared by angles, as CLIP's. Features of
    several places (maps) are averaged over them.

    Settings: `layer_norm` and `smooth_l1` are VkD's; `unit` with `cosine` suits embeddings that are compared by angles,
    as CLIP's. Features of several places (maps) are averaged over them.
    Published: none that compare; VkD, ImageNet, DeiT-Ti 78.3.
    Pitfalls: the classifier gets no gradient: go on with `train` and `initial:`, or add `{method: labels}`. A projector
    of its own layers does the work itself: keep it linear, or the student's features get worse. Needs no labels:
    `transfer: {labelled: false}` hides them.
    Releases: VkD's passes torch's wrapper for several workers by, so that gradients are not averaged; LightlyTrain's
    unfilled queue counts as classes; Theia's cosine is over whole maps.
    """

    word = "embedding"
    implementation = "raydistill.methods.projected:Projected"

    normalize: Literal["none", "unit", "layer_norm"] = "layer_norm"
    """What is made of the teacher's embedding: nothing, length 1, or mean 0 and deviation 1."""
    distance: Literal["smooth_l1", "squared", "cosine"] = "smooth_l1"
    """How far apart both are: smooth L1, mean of squares, or 1 less the cosine."""


class SimilarityPreservingConfig(EmbeddingOptions):
    """Which samples of a batch look alike (SP, Tung and Mori, ICCV 2019, arXiv 1907.09682).

    loss = weight · ‖G^S - G^T‖² / B², with G the inner products of the B samples' features, each row divided by its
    length. Sizes may differ; features of several places (maps) are taken as one long vector.

    Settings: weight 3000 is the toolboxes', with the last maps (`student_feature: stage3`, `teacher_feature: stage3` of
    a ResNet-32x4) and beside labels: `methods: [{method: labels}, {method: similarity_preserving}]`.
    Published: CIFAR-100 (RepDistiller): ResNet-32x4 → ResNet-8x4 72.94, ResNet-50 → MobileNetV2 68.08, of the relations
    the best there.
    Pitfalls: each worker compares its own part of a batch. The loss is at most 2 / B, so that the weight goes with 64
    samples a worker: with a quarter of them it counts four times. A single sample gives 0. Needs no labels.
    Releases: torchdistill squares a length, whose gradient at a match rests on a convention.
    """

    word = "similarity_preserving"
    implementation = "raydistill.methods.similarity_preserving:SimilarityPreserving"
    couples_samples = True

    weight: NonNegative = 3000.0


class ProbabilisticTransferConfig(EmbeddingOptions):
    """How probable every sample is as the neighbour of another (PKT, Passalis and Tefas, ECCV 2018, arXiv 1803.10837).

    P(j | i) ∝ (cos(f_i, f_j) + 1) / 2 over the batch; loss = weight · Σ_ij P^T log(P^T / P^S) / B². Blind to rotations
    and to the length of every embedding; sizes may differ.

    Settings: weight 30000 is the toolboxes', beside labels: `methods: [{method: labels}, {method:
    probabilistic_transfer}]`; the authors train on it alone.
    Published: CIFAR-100 (RepDistiller): ResNet-32x4 → ResNet-8x4 73.64, WRN-40-2 → WRN-16-2 74.54.
    Pitfalls: each worker compares its own part of a batch; the weight goes with 64 samples, and a single one gives 0.
    Embeddings behind a ReLU have no negative cosines, and so little contrast. Needs no labels.
    Releases: an embedding of zeros has a value, but no gradient that is a number.
    """

    word = "probabilistic_transfer"
    implementation = "raydistill.methods.probabilistic_transfer:ProbabilisticTransfer"
    couples_samples = True

    weight: NonNegative = 30000.0


class CorrelationCongruenceConfig(EmbeddingOptions):
    """Kernels between the samples of a batch (CC, Peng et al., ICCV 2019, arXiv 1904.01802), as the paper has them.

    loss = weight · mean over pairs of (K^S - K^T)², with K the first terms, up to `order`, of the series of
    exp(-gamma ‖f_i - f_j‖²) in the cosine of two embeddings. Sizes may differ.

    Settings: gamma 0.4 and order 2 are the toolboxes', weight 100 the Knowledge Distillation Zoo's, beside labels:
    `methods: [{method: labels}, {method: correlation_congruence}]`.
    Published: none of this form on the common pairs.
    Pitfalls: each worker compares its own part of a batch; a single sample gives 0. The diagonal is the same on both
    sides and thins the mean. Needs no labels.
    Releases: what RepDistiller calls CC is another loss, which trains the teacher's embedding too, depends on the order
    of the samples and is no number for a single one; torchdistill's does not square, nor normalise.
    """

    word = "correlation_congruence"
    implementation = "raydistill.methods.correlation_congruence:CorrelationCongruence"
    couples_samples = True

    weight: NonNegative = 100.0
    gamma: Positive = 0.4
    """How fast the kernel falls with the distance."""
    order: Annotated[Integer, Field(ge=1, le=20)] = 2
    """Powers of the cosine that are taken."""


class ContrastOptions(EmbeddingOptions):
    """What methods that tell a sample from others can be told."""

    passes_over_unlabelled = True

    weight: NonNegative = 0.8
    dimensions: Annotated[Integer, Field(ge=1, le=100_000)] = 128
    """Of the vectors that both embeddings are brought to."""
    spare_own_class: Boolean = True
    """Whether other samples of the same class are no negatives."""

    @property
    def needs_labels(self) -> bool:
        """Whether the loss looks at the true labels."""
        return self.spare_own_class


class ContrastiveConfig(ContrastOptions):
    """A sample's embedding picks the teacher's of the same sample out of a batch (CRD, Tian et al., ICLR 2020,
    arXiv 1910.10699, with the batch in place of the memory bank).

    Linear heads bring both embeddings to vectors s and t of length 1; loss = weight · half the sum of the
    cross-entropies of s_i · t_j / temperature with label i, over j and over i. Other samples of the same class are left
    out of it. The heads are trained beside the student and left behind. Sizes may differ.

    Settings: 128 dimensions, temperature 0.07 and weight 0.8 are the paper's, beside labels: `methods: [{method:
    labels}, {method: contrastive}]`; its 16,384 negatives come from a bank of all samples: take large batches here.
    Published: none with the batch; with the bank see `contrastive_bank`.
    Pitfalls: each worker compares its own part of a batch; a single sample gives 0. With `spare_own_class: false` no
    label is looked at; without a label, a sample is nobody's like. Under mixup, classes are those of the first partner.
    Releases: banks, heads and the normaliser are in no checkpoint; on several workers the bank keeps one worker's
    updates.
    """

    word = "contrastive"
    implementation = "raydistill.methods.contrastive:Contrastive"
    couples_samples = True

    temperature: Temperature = 0.07
    """Divides the cosines before the softmax over the batch; lower asks for more."""


class ContrastiveBankConfig(ContrastOptions):
    """A sample's embedding picks the teacher's of the same sample out of a memory bank of all samples (CRD, Tian et
    al., ICLR 2020, arXiv 1910.10699, as published).

    Linear heads bring both embeddings to vectors of length 1, and a bank for each network has one such vector of every
    sample. loss = weight · (L_s + L_t), where L_s = -log h(e_0) - sum over K negatives of log(1 - h(e_k)) tells the own
    row of the teacher's bank from K rows of samples of other classes, e = exp(s · row / temperature) / Z and
    h(e) = e / (e + K/N); L_t the same with the networks exchanged. Z makes the mean of e in the first batch 1/N and
    stays. After a batch its rows become the direction of momentum · row + (1 - momentum) · vector. Sizes may differ.

    Settings: 16,384 negatives, 128 dimensions, temperature 0.07, momentum 0.5 and weight 0.8 are the paper's, beside
    labels: `methods: [{method: labels}, {method: contrastive_bank}]`.
    Published: CIFAR-100 (RepDistiller): ResNet-32x4 → ResNet-8x4 75.51, WRN-40-2 → WRN-16-2 75.48, ResNet-110 →
    ResNet-32 73.48, ResNet-50 → MobileNetV2 69.11.
    Pitfalls: N samples take 2 · N · dimensions · 4 bytes, on the device and in every checkpoint: 51 MB for CIFAR-100,
    1.3 GB for ImageNet; a step compares its B samples with all N: some ten tensors of B · N · 4 bytes. The loss begins
    near 21. Negatives are drawn with repetition. No mixup nor cutmix. With `spare_own_class: false` no label is looked
    at; without a label, a sample is nobody's like. Under `accumulate` a batch finds what those before it wrote.
    Releases: banks, heads and Z are in no checkpoint; on several workers the bank keeps one worker's updates.
    """

    word = "contrastive_bank"
    implementation = "raydistill.methods.contrastive_bank:ContrastiveBank"
    remembers_samples = True

    temperature: Temperature = 0.07
    """Divides the cosines; lower asks for more."""
    negatives: Annotated[Integer, Field(ge=1, le=1_000_000)] = 16_384
    """Rows of the bank that a sample is told from, drawn anew in every step."""
    momentum: Annotated[Number, Field(ge=0, lt=1)] = 0.5
    """What a row keeps of itself when its sample comes by."""
