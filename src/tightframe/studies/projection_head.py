"""Does a projection head during pre-training keep features from collapsing, and does that help them transfer?"""

from tightframe.pretraining.model import MOST_LAYERS
from tightframe.studies.graded import graded_study

STUDY = graded_study(
    name="projection-head",
    claim="a projection head that is dropped after pre-training keeps the features from collapsing on the source "
    "images, and they transfer better",
    paper="Models were pre-trained with projection heads of different depth and judged on other datasets.",
    small="A ResNet-8 is pre-trained with cross-entropy from scratch on the first of the datasets, with heads of "
    "0 to 3 hidden layers, and judged on the others by a ridge probe and 5-shot episodes.",
    minutes=24,
    what="a projection head",
    knob="projector",
    levels=tuple(range(MOST_LAYERS + 1)),
)
