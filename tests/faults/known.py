"""Deliberate faults in the source, each with a test that has to catch it; `prove.py` tries them out.

When code that a fault is written against changes, write the fault anew against the code that took its place.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """A change to one file of the source that makes it wrong.

    Attributes:
        name: what is wrong then.
        file: path below `src/tightframe`.
        old: text that occurs there exactly once.
        new: what takes its place.
        test: path below `tests` and name of the test that has to fail.
    """

    name: str
    file: str
    old: str
    new: str
    test: str


FAULTS = (
    Fault(
        "merging moments forgets how far class means lie apart",
        "features/moments.py",
        "add_gram(scatter, shift)",
        "add_gram(scatter, 0 * shift)",
        "features/test_moments.py::test_any_split_into_batches_in_any_order_of_merging",
    ),
    Fault(
        "moments multiply uncentered features",
        "features/moments.py",
        "centers = means.to(self.dtype)",
        "centers = 0 * means.to(self.dtype)",
        "features/test_moments.py::test_the_definition_in_one_batch",
    ),
    Fault(
        "NC1 counts directions that are rounding",
        "metrics/factors.py",
        "cutoff = rounding(moments)",
        "cutoff = 0.0",
        "metrics/test_collapse.py::test_results_say_what_they_were_made_of",
    ),
    Fault(
        "the cutoff is scaled by centered means, so that an offset adds directions",
        "metrics/factors.py",
        "return rounding_of(moments.means)",
        "return rounding_of(moments.means - moments.means.mean(0))",
        "metrics/test_collapse.py::test_a_large_offset_does_not_add_directions",
    ),
    Fault(
        "the correction leaves the noise of class means in their Gram matrix",
        "metrics/debiasing.py",
        "gram = between.T @ between - traces[0] * across",
        "gram = between.T @ between",
        "metrics/test_correction.py::test_few_samples_tell_the_population",
    ),
    Fault(
        "the head of a fold has seen the fold",
        "metrics/folds.py",
        "for other, part in enumerate(self.parts) if other != fold)",
        "for other, part in enumerate(self.parts) if other >= 0)",
        "probes/test_results.py::test_accuracy_on_noise_is_chance",
    ),
    Fault(
        "folds are not stratified",
        "metrics/folds.py",
        "assigned[members] = (dealt + np.arange(len(members))) % folds",
        "assigned[members] = generator.integers(folds, size=len(members))",
        "probes/test_results.py::test_folds_are_stratified_and_even",
    ),
    Fault(
        "a sample votes on itself",
        "probes/knn.py",
        "similarity.masked_fill_(own[start : start + step, None] == own, -torch.inf)",
        "similarity.masked_fill_(own[start : start + step, None] < 0, -torch.inf)",
        "probes/test_knn.py::test_a_copy_votes_but_a_sample_does_not_vote_on_itself",
    ),
    Fault(
        "logistic regression penalizes twice as much",
        "probes/logistic.py",
        "(2 if len(targets) == 2 else 1) / strength)",
        "2 / strength)",
        "probes/test_logistic.py::test_the_optimum_is_sklearns",
    ),
    Fault(
        "queries of an episode are among its support",
        "probes/episodes.py",
        "return Episodes(drawn[..., queries:], drawn[..., :queries])",
        "return Episodes(drawn[..., :shots], drawn[..., :queries])",
        "probes/test_episodes.py::test_episodes_are_what_they_should_be",
    ),
    Fault(
        "ridge regression on episodes has no intercept",
        "probes/episodes.py",
        "return Heads(support.targets @ inverse, intercept @ support.targets.T)",
        "return Heads(support.targets @ inverse, 0 * (intercept @ support.targets.T))",
        "probes/test_episodes.py::test_ridge_is_scikit_learns",
    ),
    Fault(
        "patch tokens are averaged together with the class token",
        "features/taps.py",
        "return output[:, layer.prefix_tokens :].float().mean(1)",
        "return output.float().mean(1)",
        "features/test_taps.py::test_tokens",
    ),
    Fault(
        "what was read changes with layers that work in place",
        "features/taps.py",
        'if layer.layout == "vector":\n        return output.to(torch.float32, copy=True)',
        'if layer.layout == "vector":\n        return output.to(torch.float32)',
        "features/test_taps.py::test_layers_that_work_in_place_do_not_change_what_was_read_before_them",
    ),
    Fault(
        "images are divided by the deviation before the mean is subtracted",
        "backbone.py",
        "return (pixels.float() / 255 - mean) / std",
        "return pixels.float() / 255 / std - mean",
        "features/test_extract.py::test_features_of_every_layer_in_the_order_of_the_data",
    ),
    Fault(
        "the fingerprint leaves preprocessing out",
        "backbone.py",
        "str(self.head), repr(self.preprocessing), self.source)",
        "str(self.head), self.source)",
        "features/test_extract.py::test_every_field_of_the_preprocessing_counts",
    ),
    Fault(
        "the fingerprint leaves structure out",
        "backbone.py",
        "parts = (self.weights, buffers, repr(self.module), str(self.head),",
        "parts = (self.weights, buffers, str(self.head),",
        "models/test_huggingface.py::test_the_fingerprint_holds_what_weights_do_not_tell_and_not_the_place",
    ),
    Fault(
        "features kept for another pooling are taken",
        "features/extract.py",
        '"pool": pool,',
        '"pool": "mean",',
        "features/test_extract.py::test_another_pooling_is_a_miss",
    ),
    Fault(
        "features kept for other images are taken",
        "features/extract.py",
        '"data": data.fingerprint,',
        '"data": data.name,',
        "features/test_extract.py::test_anything_else_is_a_miss",
    ),
    Fault(
        "a manifest reads files outside its folder",
        "features/store.py",
        'return [entry / Path(str(name)).name for name in manifest["shards"]]',
        'return [entry / str(name) for name in manifest["shards"]]',
        "features/test_extract.py::test_a_manifest_reads_nothing_outside_its_folder",
    ),
    Fault(
        "a whole entry is replaced while others read it",
        "features/store.py",
        "if faster is not None:",
        "if False:",
        "features/test_extract.py::test_an_entry_that_is_whole_is_never_replaced",
    ),
    Fault(
        "block inputs kept for other images are handed out",
        "features/workspace.py",
        "key = (*(backbone.fingerprint, images.fingerprint,",
        "key = (*(backbone.fingerprint, images.name,",
        "features/test_workspace.py::test_block_inputs_are_those_of_the_images_and_the_backbone_asked_for",
    ),
    Fault(
        "features that are kept are computed again",
        "features/workspace.py",
        "missing = [name for name, kept in found.items() if kept is None]",
        "missing = list(found)",
        "features/test_workspace.py::test_a_pass_computes_no_features_that_are_kept",
    ),
    Fault(
        "the pass for block inputs leaves features to a second pass",
        "features/workspace.py",
        "missing = [name for name, key_ in keys.items() if self._store.find(key_) is None]",
        "missing = [name for name in keys if name not in keys]",
        "jobs/test_passes.py::test_the_block_is_chosen_in_one_pass_for_all_methods",
    ),
    Fault(
        "the model from a block on skips the block",
        "tuning/surgery.py",
        "call, entry = calls[0], calls[0].args[0]",
        "call = entry = calls[0]",
        "tuning/test_prefix.py::test_a_model_goes_on_from_any_of_its_blocks",
    ),
    Fault(
        "kept inputs of maps have height and channels exchanged",
        "features/inputs.py",
        "batch.permute(0, 3, 1, 2) if self.maps else batch",
        "batch.permute(0, 1, 3, 2) if self.maps else batch",
        "tuning/test_prefix.py::test_training_from_the_block_is_training_the_whole",
    ),
    Fault(
        "batch norms of frozen blocks follow the new images",
        "tuning/surgery.py",
        "super().train(False)\n        for module in self._modules_trained:",
        "super().train(mode)\n        for module in self._modules_trained:",
        "tuning/test_surgery.py::test_a_step_changes_what_the_method_trains_and_nothing_else",
    ),
    Fault(
        "methods that tune a block train the whole model",
        "tuning/methods.py",
        'return Owned([submodule(base, layer or "")], [])',
        "return Owned([base], [])",
        "tuning/test_surgery.py::test_a_step_changes_what_the_method_trains_and_nothing_else",
    ),
    Fault(
        "the cosine ends at zero",
        "tuning/recipe.py",
        "final = min(self.final_lr, first)",
        "final = 0.0",
        "tuning/test_loop.py::test_the_rate_goes_down_a_cosine",
    ),
    Fault(
        "training goes on from a checkpoint one step too late",
        "tuning/loop.py",
        "mine = mine[underway.step * size :]",
        "mine = mine[(underway.step + bool(underway.step)) * size :]",
        "tuning/test_loop.py::test_stopped_at_any_step_it_goes_on_to_the_same_result",
    ),
    Fault(
        "a checkpoint of another recipe is gone on from",
        "tuning/state.py",
        'if kept is None or kept[0].get("identity") != self.identity:',
        "if kept is None:",
        "tuning/test_loop.py::test_a_checkpoint_of_anything_else_is_not_used",
    ),
    Fault(
        "a learning rate is chosen on images that were trained on",
        "decide/training.py",
        "return Split(self.labels, training, training[:0] if validation is None else validation, self.classes)",
        "return Split(self.labels, training, training if validation is not None else training[:0], self.classes)",
        "jobs/test_training.py::test_with_patience_images_are_held_out_to_the_end",
    ),
    Fault(
        "a warm start has seen the images that judge it",
        "decide/training.py",
        "            self.warm(training)",
        "            self.warm(np.arange(len(self.labels)))",
        "jobs/test_training.py::test_a_warm_start_has_not_seen_the_images_that_judge_it",
    ),
    Fault(
        "the race of blocks is judged on images that were trained on",
        "decide/block.py",
        "last = fit(part, kept[block], split, short, **where)[-1]",
        "last = fit(part, kept[block], replace(split, validation=split.training), short, **where)[-1]",
        "jobs/test_block.py::test_candidates_are_judged_on_images_that_neither_block_nor_head_was_trained_on",
    ),
    Fault(
        "a saved folder may run a Python file",
        "deploy/tuned.py",
        "if model is None and BUILDER.fullmatch(named):",
        "if model is None and False:",
        "deploy/test_tuned.py::test_a_folder_never_runs_a_python_file_but_the_user_may",
    ),
    Fault(
        "a saved folder is put on other base weights",
        "tuning/checkpoint.py",
        "if backbone.weights != description.weights:",
        "if False:",
        "deploy/test_tuned.py::test_other_base_weights_are_refused_with_what_to_do",
    ),
    Fault(
        "pickled weights are read",
        "models/huggingface.py",
        'if not part.endswith(".safetensors") or Path(part).name != part or not (folder / part).is_file():',
        "if not (folder / part).is_file():",
        "models/test_huggingface.py::test_pickles_are_never_read",
    ),
    Fault(
        "classes of other images are taken by number, not by name",
        "deploy/evaluate.py",
        "return np.array([places.get(name, -1) for name in data.classes], dtype=np.int64)[data.labels]",
        "return np.asarray(data.labels)",
        "deploy/test_evaluate.py::test_some_classes_in_another_order_are_found_by_name",
    ),
    Fault(
        "predictions name the least likely class",
        "deploy/tuned.py",
        '"predicted": self.classes[int(shares.argmax())],',
        '"predicted": self.classes[int(shares.argmin())],',
        "deploy/test_tuned.py::test_predictions",
    ),
    Fault(
        "the exported graph does not normalize, and is not compared",
        "deploy/export.py",
        "logits = self.model(self.preprocessing.normalize(self.factor * pixels))",
        "logits = self.model(self.factor * pixels / 255)",
        "deploy/test_export.py::test_it_says_the_same_for_any_number_of_images",
    ),
    Fault(
        "what is typed for a parameter whose default is nothing is not handed on",
        "cli/options.py",
        "if value is not None or known[name].default is None:",
        "if value is not None and known[name].default is not None:",
        "cli/test_options.py::test_what_is_typed_reaches_the_function_and_the_rest_keeps_its_default",
    ),
    Fault(
        "text of users becomes markup of the page",
        "report/render.py",
        'autoescape=select_autoescape(("html",)),',
        "autoescape=False,",
        "report/test_page.py::test_no_user_text_becomes_markup",
    ),
    Fault(
        "held-out images stay among the training images",
        "data/selection.py",
        "return ImageSplits(name, images.subset(kept), images.subset(held_out",
        "return ImageSplits(name, images, images.subset(held_out",
        "data/test_folder.py::test_classes_alone_are_split",
    ),
    Fault(
        "an image file may declare any number of pixels",
        "data/decoding.py",
        "if width * height > MAX_PIXELS:",
        "if width * height > MAX_PIXELS**2:",
        "data/test_decoding.py::test_bombs_are_refused_whatever_the_warning_filters_and_the_limit_of_pillow",
    ),
    Fault(
        "a file is written in place, so that half of it may stay",
        "files.py",
        "content(unfinished)\n        unfinished.replace(path)",
        "content(path)",
        "report/test_page.py::test_writing_replaces_the_whole_file_or_nothing",
    ),
    Fault(
        "what was trained is used wherever it loses less",
        "decide/choice.py",
        "if gain.value > errors * gain.error]",
        "if gain.value > 0]",
        "decide/test_choice.py::test_the_first_stays_where_nothing_is_clearly_better",
    ),
    Fault(
        "an image that is left out has a part in its own class mean",
        "probes/left_out.py",
        "distance[rows, labels] = factor.square() * own + grown * (factor * own).square()",
        "distance[rows, labels] = own + grown * (factor * own).square()",
        "probes/test_discriminant.py::test_each_discriminant_is_the_formula_and_each_image_is_left_out",
    ),
    Fault(
        "a model's folds are trained on the images that they predict",
        "decide/training.py",
        "training, held = np.flatnonzero(assigned != fold), np.flatnonzero(assigned == fold)",
        "training, held = np.arange(images), np.flatnonzero(assigned == fold)",
        "jobs/test_training.py::test_no_fold_has_seen_the_images_that_it_predicts",
    ),
    Fault(
        "a model is judged on images that it was trained on",
        "deploy/evaluate.py",
        "[digest in known for digest in data.digests]",
        "[not digest for digest in data.digests]",
        "deploy/test_training_set.py::test_a_folder_that_was_partly_trained_on_is_judged_on_the_rest",
    ),
    Fault(
        "a fold parts a group",
        "metrics/folds.py",
        "return place[numbers]",
        "return np.roll(place[numbers], 1)",
        "metrics/test_grouped_folds.py::test_folds_keep_groups_whole_and_are_as_even_as_scikit_learns",
    ),
    Fault(
        "a held-out share parts a group",
        "data/selection.py",
        "return chosen[numbers]",
        "return np.roll(chosen[numbers], 1)",
        "metrics/test_grouped_folds.py::test_a_share_is_held_out_in_whole_groups",
    ),
    Fault(
        "class means keep what a group that is left out put into them",
        "probes/left_out.py",
        "toward[:, present] -= between @ share.T",
        "toward[:, present] -= 0 * between @ share.T",
        "probes/test_groups_left_out.py::test_leaving_out_a_group_is_fitting_the_others_anew",
    ),
    Fault(
        "intervals count every image of a group",
        "probes/results.py",
        "return len(correct) / max(float(effect), 1.0)",
        "return len(correct) / min(float(effect), 1.0)",
        "decide/test_groups.py::test_intervals_over_groups_hold_the_truth",
    ),
    Fault(
        "P(best) draws images out of their groups",
        "decide/recommendation.py",
        "numbers = group_numbers(outcomes[0].groups, images)",
        "numbers = group_numbers(None, images)",
        "decide/test_groups.py::test_copies_do_not_make_a_model_surely_the_best",
    ),
    Fault(
        "an episode asks about a group that it learned from",
        "probes/apart.py",
        "shuffled[~asked][:shots]",
        "shuffled[asked][-shots:]",
        "probes/test_apart.py::test_no_group_is_learned_from_and_asked_about",
    ),
    Fault(
        "a model is judged on others of a group that it was trained on",
        "deploy/evaluate.py",
        "related = _related(data, others, known) & ~seen",
        "related = _related(data, others, known) & seen",
        "jobs/test_groups.py::test_a_group_trained_on_is_not_evaluated_on",
    ),
    Fault(
        "one model counts twice in a mean",
        "tuning/surgery.py",
        "for head in heads], 1) / 2)",
        "for head in heads], 1) / 1)",
        "jobs/test_auto.py::test_the_mean_is_of_both_models_and_of_what_they_said",
    ),
    Fault(
        "a mean is used wherever it loses less",
        "jobs/tune.py",
        "errors=1.0)",
        "errors=0.0)",
        "jobs/test_auto.py::test_what_the_rule_takes_is_saved_and_returned",
    ),
    Fault(
        "few images move the statistics of batch norms",
        "tuning/surgery.py",
        "for norm in batch_norms(self) if self.steady else ():",
        "for norm in batch_norms(self) if self.warm else ():",
        "tuning/test_surgery.py::test_batch_norms_keep_their_statistics_where_training_is_steady",
    ),
    Fault(
        "the standard scale of features is lost with training",
        "tuning/heads.py",
        "head.bias.sub_(head.weight @ self.center)",
        "head.bias.add_(head.weight @ self.center)",
        "tuning/test_surgery.py::test_a_standard_scale_is_what_it_says_and_goes_into_the_head",
    ),
    Fault(
        "the head is clipped with the rest",
        "tuning/loop.py",
        'nn.utils.clip_grad_norm_(self.state.optimizer.param_groups[0]["params"], self.recipe.clip)',
        "nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)",
        "tuning/test_loop.py::test_the_head_has_a_rate_of_its_own_and_gradients_of_the_rest_are_clipped",
    ),
    Fault(
        "neighbors are found in layers of any scale",
        "deploy/neighbors.py",
        "(features - familiar.center) * familiar.factor @ directions",
        "(features - familiar.center) @ directions",
        "deploy/test_neighbors.py::test_the_nearest_are_those_of_the_features_in_their_own_spread",
    ),
)
