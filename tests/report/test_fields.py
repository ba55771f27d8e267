"""The declared fields are those that results hold, and the page about them is up to date."""

from __future__ import annotations

import runpy
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

import tightframe as tf
from tightframe.deploy.evaluate import evaluate
from tightframe.deploy.merge import merge
from tightframe.report import formats
from tightframe.report.fields import FIELDS, TABLES

TUNED = tf.TrainConfig(epochs=2, search_epochs=1, lr=(0.05, 0.01), weight_decay=(1e-4,))
RARE = {
    "tune": {"validation_accuracy"},  # told by `compare`
}
"""Keys that a table may lack here, beside ``error``."""
NUMBERS = {"exact", "number", "percent", "seconds"}


class Shelf:
    """A hub that takes everything."""

    def create_repo(self, repo_id, *, private=None, exist_ok=False):
        return f"https://hub.example/{repo_id}"

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        pass


@pytest.fixture(scope="module")
def found(names, tmp_path_factory):
    """Rows of every table, as the jobs make them."""
    folder = tmp_path_factory.mktemp("jobs")
    data = tf.load_images("digits:5-9", max_per_class=10, test_share=0.1)
    backbone = tf.load_backbone(names["wide"])
    moved = tf.transfer(data, list(names.values()), out=folder / "run", methods=("linear", "layer"), config=TUNED)
    tuned = tf.load_tuned(folder / "run" / "linear")
    many = [names["wide"], names["narrow"], backbone]
    ranked = tf.rank(data, many, truth="probe")
    results = {
        "rank": ranked,
        "raced": tf.rank(data, many, time_limit=5.0),
        "measure": tf.measure(data, backbone),
        "layers": tf.layers(data, backbone),
        "check": tf.check(data.train.joined(data.train), backbone),
        "fewshot": tf.fewshot(data, backbone, ways=2, shots=(1,), episodes=3, queries=2),
        "transfer": moved.result,
        "evaluate": evaluate(tuned, data),
        "merge": merge(tuned, folder / "merged"),
        "export": tf.export_onnx(tuned, folder / "net.onnx", data),
        "push": tf.push_to_hub(folder / "run" / "layer", "ann/net", api=Shelf()),
        "pretrain": tf.pretrain(data, folder / "made", tf.Pretraining("cifar_resnet8", epochs=1, batch_size=16)),
    }
    rows = {name: list(result.rows) for name, result in results.items()}
    rows["rank"] += rows.pop("raced")
    rows |= {
        "tune": [tuned.metrics],
        "compare": moved.methods,
        "predict": tuned.predict([data.test[0]], reject=0.1, explain=1),
    }
    for result in results.values():
        for name, table in result.tables.items():
            rows.setdefault(name, []).extend(table)
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("table", sorted(set(TABLES) - {"scores", "evidence", "studies"}))
def test_real_rows_have_exactly_the_declared_keys(found, table):
    rows = [row for row in found[table] if "error" not in row]
    held = set().union(*rows)
    assert held <= TABLES[table].keys
    always = {*TABLES[table].columns, *TABLES[table].others}  # but for ends of intervals, which not all have
    assert always - RARE.get(table, set()) <= held


@pytest.mark.slow
@pytest.mark.parametrize("table", sorted(set(TABLES) - {"scores", "evidence", "studies"}))
def test_real_values_are_of_the_kind_that_their_format_says(found, table):
    for row in found[table]:
        for key, value in row.items():
            kind = FIELDS[key].format.__name__ if key in FIELDS else "number"  # or an end of an interval
            if value is None:
                continue
            if kind in NUMBERS:
                assert isinstance(value, float | int), key
            elif kind in ("count", "millions", "size"):
                assert isinstance(value, int), key
            else:
                assert isinstance(value, {"text": str, "flag": bool, "listed": (list, Mapping)}[kind]), key


def test_every_field_says_what_it_means_in_one_sentence():
    for field in FIELDS.values():
        assert field.meaning.endswith("."), field.key
        assert field.title[0].isupper() or field.title[0] in "k±P", field.key
        assert "|" not in field.title + field.meaning


def test_scores_are_rows_of_a_ranking():
    assert TABLES["scores"].keys <= TABLES["rank"].keys


def test_formats_take_what_numpy_has():
    assert formats.percent(np.float32(0.5)) == "50.0 %"
    assert formats.count(np.int64(3)) == "3"
    assert formats.listed({"a": [1, 2], "b": []}) == "a: 1, 2, b: –"
    assert [formats.flag(value) for value in (True, False, None)] == ["yes", "no", "–"]


def test_the_page_of_fields_is_up_to_date():
    docs = Path(__file__).parents[2] / "docs"
    page = runpy.run_path(str(docs / "make_fields.py"))["page"]()
    assert (docs / "fields.md").read_text(encoding="utf-8") == page, "run python docs/make_fields.py"
