"""The studies of the paper (Li et al., TMLR 2024) by name: each is a declaration over the jobs, to be run and changed.

A study declares the points to compute and the claims to test on their rows (``evidence``) in Python, and its words,
scales, columns and plot in ``studies.toml``; ``run_study`` does the rest. To add a study, declare it beside those it is
like, and name it here.
"""

from tightframe.studies import relations, training, tuning
from tightframe.studies.runner import run_study
from tightframe.studies.study import Study

STUDIES: dict[str, Study] = {
    study.name: study
    for study in (
        relations.DOWNSTREAM_COLLAPSE,
        training.SOURCE_COLLAPSE,
        training.PROJECTION_HEAD,
        training.AUGMENTATION,
        relations.FEW_SHOT,
        relations.LAYERS,
        relations.ACROSS_DATA,
        tuning.TUNED_LAYER,
        tuning.METHODS,
        tuning.SCARCE_DATA,
    )
}

__all__ = ["STUDIES", "Study", "run_study"]
