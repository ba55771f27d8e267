"""The studies of the paper (Li et al., TMLR 2024) by name: each a short file over the jobs, to be run and changed."""

from tightframe.studies import (
    across_data,
    augmentation,
    downstream_collapse,
    few_shot,
    layers,
    methods,
    projection_head,
    scarce_data,
    source_collapse,
    tuned_layer,
)
from tightframe.studies.study import Study, run_study

STUDIES: dict[str, Study] = {
    module.STUDY.name: module.STUDY
    for module in (
        downstream_collapse,
        source_collapse,
        projection_head,
        augmentation,
        few_shot,
        layers,
        across_data,
        tuned_layer,
        methods,
        scarce_data,
    )
}

__all__ = ["STUDIES", "Study", "run_study"]
