"""Tables as people have them: delimiters, quotes, odd names of columns, groups; and where their images may be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tightframe.data.loading import load_images
from tightframe.errors import BadImage, DataError, SettingsError

HEADER = "file{0}class{0}patient"


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Eight images of two classes below ``scans``, two a patient."""
    for index in range(8):
        path = tmp_path / "scans" / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4), (index,) * 3).save(path)
    return tmp_path


def text(mark: str = ",", top: str = "scans/", end: str = "\n") -> str:
    lines = [f"{top}{index}.png{mark}{'01' if index < 4 else '1'}{mark}p{index // 2}" for index in range(8)]
    return end.join([HEADER.format(mark), *lines]) + end


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_delimiters_encodings_and_line_ends(scans, mark, encoding, end) -> None:
    (scans / "set.csv").write_bytes(text(mark, end=end).encode(encoding))
    data = load_images(scans / "set.csv", test_share=0.0).train
    assert data.classes == ("01", "1")
    assert data.labels.tolist() == [0] * 4 + [1] * 4
    assert data.groups is None


def test_quotes_hold_delimiters_and_quotes(scans) -> None:
    Image.new("RGB", (4, 4)).save(scans / 'a, "b"; c.png')
    lines = ["file,class,note", '"a, ""b""; c.png","x, y","two\nlines"', "scans/1.png,z,", "scans/2.png,z"]
    (scans / "set.csv").write_text("\n".join(lines))
    data = load_images(scans / "set.csv", test_share=0.0).train
    assert data.classes == ("x, y", "z")
    assert data.identifiers == ('a, "b"; c.png', "scans/1.png", "scans/2.png")


def test_groups_are_numbers_that_both_splits_share(scans) -> None:
    lines = [line + ("test" if index % 2 else "train") for index, line in enumerate(text().splitlines())]
    lines = [lines[0].replace("patienttrain", "patient,part")] + [
        line.replace("test", ",test").replace("train", ",train") for line in lines[1:]
    ]
    lines[1] = lines[1].replace("p0", "")
    (scans / "set.csv").write_text("\n".join(lines))
    data = load_images(scans / "set.csv", split_column="part", group_column="patient")
    groups = {
        name: int(group)
        for images in (data.train, data.test)
        for name, group in zip(images.identifiers, images.groups, strict=True)
    }
    assert groups["scans/2.png"] == groups["scans/3.png"] != groups["scans/4.png"]
    assert groups["scans/0.png"] not in {group for name, group in groups.items() if name != "scans/0.png"}
    assert (len(data.train), len(data.test)) == (4, 4)
    assert data.train.subset([0]).groups.dtype == np.int64


def test_a_split_column_of_that_name_is_found_if_it_says_splits(scans) -> None:
    words = ["train", "Training", "val", "test", "train", "valid", "TEST", "test"]
    lines = text().splitlines()
    written = ["file,class,patient,split", *(f"{line},{word}" for line, word in zip(lines[1:], words, strict=True))]
    (scans / "set.csv").write_text("\n".join(written))
    data = load_images(scans / "set.csv")
    assert data.test.identifiers == ("scans/3.png", "scans/6.png", "scans/7.png")
    (scans / "set.csv").write_text("\n".join([written[0], *(f"{line},{i}" for i, line in enumerate(lines[1:]))]))
    assert load_images(scans / "set.csv", test_share=0.0).test is None
    with pytest.raises(DataError, match="split '0' in split; say train, val or test"):
        load_images(scans / "set.csv", split_column="split")


def test_columns_of_other_names_are_named(scans) -> None:
    (scans / "set.csv").write_text(text().replace("file,class,patient", "photo,species,who"))
    with pytest.raises(DataError, match=r"no column of images.*--image-column.*photo, species, who"):
        load_images(scans / "set.csv")
    with pytest.raises(DataError, match=r"no column of labels.*--label-column"):
        load_images(scans / "set.csv", image_column="photo")
    with pytest.raises(DataError, match=r"has no column 'kind'; name it with --label-column"):
        load_images(scans / "set.csv", image_column="photo", label_column="kind")
    data = load_images(scans / "set.csv", image_column="photo", label_column="species")
    assert data.classes == ("01", "1")


def test_json_lines_keep_numbers_as_they_are_written(scans) -> None:
    rows = [{"path": f"scans/{index}.png", "label": label} for index, label in enumerate([1, 10, 2, "01", 1.50, "x"])]
    (scans / "set.jsonl").write_text("\n".join(json.dumps(row) for row in rows).replace("1.5}", "1.50}"))
    data = load_images(scans / "set.jsonl", test_share=0.0)
    assert data.classes == ("01", "1", "1.50", "10", "2", "x")
    for wrong in ("[1, 2]", "{", '"x"'):
        (scans / "set.jsonl").write_text(wrong)
        with pytest.raises(DataError, match="can't be read as a table"):
            load_images(scans / "set.jsonl")


def test_images_elsewhere_need_their_folder_named(scans) -> None:
    (scans / "lists").mkdir()
    table = scans / "lists" / "set.csv"
    for top in (f"{scans}/scans/", "../scans/"):
        table.write_text(text(top=top))
        with pytest.raises(BadImage, match="leads out of the data folder; name the folder that holds all images"):
            load_images(table)
    table.write_text(text(top=f"{scans}/scans/"))
    data = load_images(table, root=scans, test_share=0.0).train
    assert data.identifiers[0] == "scans/0.png"
    table.write_text(text(top=""))
    assert load_images(table, root=scans / "scans", test_share=0.0).train.identifiers[0] == "0.png"
    table.write_text(text(top="../"))
    with pytest.raises(BadImage, match=r"leads out|neither"):
        load_images(table, root=scans / "scans" / "none")


def test_links_do_not_lead_out_either(scans) -> None:
    (scans / "set").mkdir()
    (scans / "set" / "images").symlink_to(scans / "scans")
    (scans / "set" / "set.csv").write_text(text(top=""))
    with pytest.raises(BadImage, match="leads out"):
        load_images(scans / "set" / "set.csv")


def test_parquet_that_holds_images_says_how_to_read_it(scans) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"image": {"bytes": b"x", "path": None}, "label": index} for index in range(3)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), scans / "set.parquet")
    with pytest.raises(DataError, match=r"not their paths; give hf/.*set\.parquet"):
        load_images(scans / "set.parquet")
    rows = [{"image": {"bytes": (scans / "scans" / "0.png").read_bytes(), "path": None}, "label": i} for i in range(3)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), scans / "set.parquet")
    assert load_images(f"hf/{scans / 'set.parquet'}", test_share=0.0).train[2].size == (4, 4)
    (scans / "set.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="can't be read as a table"):
        load_images(scans / "set.parquet")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"label_column": "x"}, "has no columns, so --label-column has no meaning"),
        ({"root": "x"}, "--root is for tables and torchvision/NAME"),
        ({"download": True}, "needs no --download"),
    ],
)
def test_options_without_a_meaning_are_refused(scans, options, said) -> None:
    with pytest.raises(SettingsError, match=said):
        load_images(scans, **options)
    with pytest.raises(SettingsError, match=r"has no meaning|--root is|needs no --download"):
        load_images("digits", **options)
