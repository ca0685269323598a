"""What the numbers drawn from a seed are for: `fold_key(seed, Purpose.ORDER, epoch)`.

Equal seeds must not give equal draws: a plan's `seed: 1` beside a task's `split_seed: 1` would make the order of an
epoch and the cut of the validation split copies of each other. So a key of `fold_key` holds a purpose. A new one takes
the next number; one in use keeps its number, for another number is another result.
"""

from enum import IntEnum, unique


@unique
class Purpose(IntEnum):
    """A number in a key of `fold_key`, and what else is in that key."""

    VALIDATION_CUT = 0
    """The task's seed: which training samples are set aside."""
    TEST_CUT = 1
    """The task's seed: which samples are the test split of data that brings none."""
    ORDER = 11
    """Stage's seed, epoch: the order of the samples."""
    TRANSFER = 12
    """The transfer set's seed: which part of the training split it is."""
    STEP = 13
    """Stage's seed, step, rank: what a step draws, such as dropout."""
    INITIAL = 14
    """Stage's seed: the weights to begin with."""
    GROWTH = 16
    """Stage's seed: what is drawn when a smaller network grows."""
    PEER_SHARDS = 17
    """The peers' common seed: which peer has which samples."""
    SURVEYED = 18
    """Nothing else: which of very many pictures a survey decodes."""
    SPECIALIST_ORDER = 21
    """Stage's seed, epoch: the order of special and other samples."""
    OTHERS = 22
    """Stage's seed, round: the order in which a specialist's other samples get their turn."""
    JUDGED = 23
    """Nothing else: which other samples a specialist is judged on."""
    COMPARED = 24
    """Nothing else: which samples models are compared on."""
    NEGATIVES = 25
    """Stage's seed; a sample and the number of its batch: what the sample is told apart from."""
    BANK = 26
    """Stage's seed: what a memory bank holds before the first step."""


# Once given twice, and kept so that results stay. None can meet its twin: the keys differ in their length, by which
# `fold_key` tells them apart, or feed different generators.
PIXEL_STATISTICS = Purpose.STEP
"""Nothing else, against a step's seed, step and rank: pictures for a task's mean and deviation."""
FAMILIES = Purpose.INITIAL
"""The generator's seed, for numpy, against weights drawn by torch: which font families are tested on."""
SWITCH = Purpose.GROWTH
"""Stage's seed, epoch, a batch's first row, against a seed alone: the teacher that a batch listens to."""
SYNTHESIZE = Purpose.SPECIALIST_ORDER
"""Stage's seed, label, batch, against seed and epoch: where synthesised samples begin."""
