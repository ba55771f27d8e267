"""Does stronger augmentation during pre-training keep features from collapsing, and does that help them transfer?"""

from tightframe.studies.graded import graded_study

STUDY = graded_study(
    name="augmentation",
    claim="augmentation during pre-training keeps features from collapsing on the source images, and they transfer "
    "better",
    paper="Models were pre-trained with augmentations of different strength and judged on other datasets.",
    small="A ResNet-8 is pre-trained with cross-entropy from scratch on the first of the datasets, with crops, "
    "flips and colors changed at strengths 0 to 1, for the same epochs each, and judged on the others by a ridge "
    "probe and 5-shot episodes.",
    minutes=20,
    what="augmentation",
    knob="augment",
    levels=(0.0, 0.25, 0.5, 1.0),
)
