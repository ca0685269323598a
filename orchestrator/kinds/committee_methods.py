"""Methods that weigh several teachers anew for every sample or every batch."""

from typing import Annotated

from pydantic import Field

from raydistill.kinds.method_options import SoftTargetOptions
from raydistill.plan.config import Boolean, Integer, NonNegative, Number, Seed


class AdaptiveWeightsOptions(SoftTargetOptions):
    """What methods that weigh several teachers can be told. With `standardize` the weights, too, are formed from
    standardised logits."""

    weighs_teachers = True
    passes_over_unlabelled = True


class EbkdConfig(AdaptiveWeightsOptions):
    """Teachers weighed by their entropy, per sample (EBKD, Kwon et al. 2020, as coded in the release of CA-MKD).

    The surer a teacher is of a sample, the more it counts there. loss = soft_weight · mean over the batch of
    Σ_m w_m T² KL(softmax(v_m/T) ‖ softmax(z/T)) / M + hard_weight · CE, with w_m = 1 - H_m / Σ_j H_j and the entropies
    H at T = 1. These weights sum to M - 1, so that the release's soft term has a factor of (M - 1) / M;
    `sum_to_one: true` removes it.

    Settings: T = 4, weights 1 and 1 are the release's.
    Published: none that we could check; see `configs/RESULTS.md` for ours.
    Pitfalls: confidently wrong teachers are rewarded; with many teachers the weights become uniform. For w ∝ exp(-H/τ)
    there is `combine: {weights: entropy}`.
    Releases: its weights sum to M - 1, so that the soft term has a factor of (M - 1) / M.
    """

    word = "ebkd"
    implementation = "raydistill.methods.ebkd:Ebkd"

    sum_to_one: Boolean = False
    """Let the teachers' weights sum to 1, not to their number less 1."""


class CaMkdConfig(AdaptiveWeightsOptions):
    """Teachers weighed by their error on the true label, per sample (CA-MKD, Zhang et al., ICASSP 2022,
    arXiv 2201.00007).

    The better a teacher knows a sample's label, the more it counts there. loss = soft_weight · mean over the batch of
    Σ_m w_m T² KL(softmax(v_m/T) ‖ softmax(z/T)) / M + hard_weight · CE, with w_m = (1 - softmax_m(CE_m)) / (M - 1) and
    CE_m the teacher's own cross-entropy at T = 1. The division by M is the release's; `sum_to_one: true` removes it.

    With `feature_weight` above 0 the paper's second term is added: feature_weight · mean over the batch of
    Σ_m u_m · mean of squares of (F_m - r_m(F)) / M, with the student's feature F, brought to the grid of the teacher's
    feature F_m, and a regressor r_m of its own (1x1 convolution, batch norm, ReLU) per teacher. u_m is formed as w_m
    is, from the error of what the teacher makes of r_m(F): its layers behind the feature give the logits. As in the
    release the gradient flows through u_m too, and the term is left out in the first `logits_only_epochs`.

    Settings: T = 4 and weights 1, 1 and 50 are the release's, with three teachers of one architecture and the features
    of the last stages; the default here is the logits' alone. Of wide ResNets name `stage3_post`, behind the ReLU.
    Published: those of both terms, with three teachers; none that we could check.
    Pitfalls: needs labels; the second term `mode: live` and networks that are chains (all but those of torchvision).
    The label leaks into the soft target. One teacher has weight 1.
    Releases: divides by M, and its gradient flows through u_m.
    """

    word = "ca_mkd"
    implementation = "raydistill.methods.ca_mkd:CaMkd"
    passes_over_unlabelled = False

    sum_to_one: Boolean = False
    """Leave out the release's division by the number of teachers."""
    feature_weight: NonNegative = Field(0.0, description="50 in the release")
    student_feature: str | None = Field(None, description="the last stage when left out")
    teacher_feature: str | None = Field(None, description="of every teacher; the last stage when left out")
    logits_only_epochs: Annotated[Integer, Field(ge=0)] = 1
    """Epochs in the beginning without the features' term."""

    @property
    def needs_member_features(self) -> bool:
        """The second term looks at the features of all teachers."""
        return self.feature_weight > 0

    @property
    def needs_labels(self) -> bool:
        """The weights look at the true labels."""
        return True


class AeKdConfig(AdaptiveWeightsOptions):
    """Teachers weighed so that the student's gradient does none of them harm, per batch (AE-KD, Du et al., "Agree to
    disagree", NeurIPS 2020).

    Each teacher's loss is an objective; the student moves along the shortest convex combination of their gradients.
    loss = soft_weight · Σ_m α_m l_m + hard_weight · CE, with l_m = T² KL(softmax(v_m/T) ‖ softmax(z/T)),
    g_m the batch mean of its gradient in z, and α = argmin ‖Σ_m α_m g_m‖² subject to Σ α_m = 1 and 0 ≤ α_m ≤ cap,
    solved exactly and taken as constant. `normalize`: of g_m / ‖g_m‖, α divided by ‖g_m‖ and scaled to sum to 1.

    Settings: T = 4, weights 0.9 and 1 and cap 0.6 are the paper's.
    Published: none that we could check.
    Pitfalls: cap = 1 lets one teacher have all the weight; cap ≤ 1/M makes them equal. The mean over the batch hides
    what teachers disagree about sample by sample; each worker has the mean of its own part.
    Releases: solves for α as a support vector machine's dual; the hints averaged beside it cut the gradient.
    """

    word = "ae_kd"
    implementation = "raydistill.methods.ae_kd:AeKd"
    couples_samples = True

    soft_weight: NonNegative = 0.9
    cap: Annotated[Number, Field(gt=0, le=1)] = 0.6
    """The most weight that one teacher can have."""
    normalize: Boolean = False
    """Look at the gradients' directions alone."""


class TeacherSwitchingConfig(AdaptiveWeightsOptions):
    """One teacher per minibatch (Fukuda et al., Interspeech 2017, "Efficient knowledge distillation from an ensemble
    of teachers").

    For every batch one of the M teachers is drawn, all equally likely. loss = soft_weight · T² KL(softmax(v_m/T) ‖
    softmax(z/T)) + hard_weight · CE. In expectation the gradient is that of the arithmetic mean of the teachers, with a
    higher variance, for which the learning rate may have to be lower. The draw is a function of (`switch_seed`, epoch,
    batch), so that a training that was stopped goes on with the same teachers; each worker draws for its own part of a
    batch.

    Settings: there is nothing to set but T and the weights; T = 4 and weights 1 and 1 are ours, since the paper's
    tables are for speech.
    Published: none that compare: the paper's are of speech.
    Pitfalls: a higher variance, for which the learning rate may have to be lower. Its other form, every sample once per
    teacher, is `hinton` with several teachers. Of live teachers only the one that was drawn is run.
    Releases: there is no public one.
    """

    word = "teacher_switching"
    implementation = "raydistill.methods.teacher_switching:TeacherSwitching"
    couples_samples = True

    switch_seed: Seed = 0
    """Chooses the teacher of each batch."""
