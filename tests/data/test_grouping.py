"""Groups by file name: what is in one, what is refused, and that nothing held out parts one."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tightframe.data.loading import load_images
from tightframe.errors import DataError, SettingsError


@pytest.fixture
def films(tmp_path):
    """Two classes of four films of five frames each, film 0 having frames of both."""
    generator = np.random.default_rng(0)
    for cls in ("cat", "dog"):
        for film in (0, *((1, 2, 3) if cls == "cat" else (4, 5, 6))):
            for frame in range(5):
                place = tmp_path / cls / f"film{film}_{frame:03}.png"
                place.parent.mkdir(exist_ok=True)
                Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(place)
    return tmp_path


def film_of(images):
    return np.array([int(name.split("film")[1].split("_")[0]) for name in images.identifiers])


@pytest.mark.parametrize("pattern", [r"film(\d+)_", r"film\d+", r"(?P<kind>film)(\d+)_"])
def test_frames_of_a_film_are_a_group_and_are_not_parted(films, pattern):
    for seed in range(5):
        data = load_images(films, groups_from=pattern, seed=seed)
        assert not set(film_of(data.train)) & set(film_of(data.test))
        for part in (data.train, data.test):
            same = film_of(part)[:, None] == film_of(part)
            np.testing.assert_array_equal(part.groups[:, None] == part.groups, same)
        assert set(data.test.labels) == {0, 1}
    assert len(data.train) + len(data.test) == 40
    assert any("groups; no split or fold parts one" in note for note in data.notes)


def test_without_a_pattern_nothing_changes_and_with_one_for_each_image_the_split_neither(films):
    plain, alone = load_images(films, seed=3), load_images(films, seed=3, groups_from=".+")
    assert plain.train.groups is None
    assert plain.train.identifiers == alone.train.identifiers
    assert plain.test.identifiers == alone.test.identifiers
    assert (plain.train.name, plain.test.name, plain.name) == (alone.train.name, alone.test.name, alone.name)
    assert any("a group of its own" in note for note in alone.notes)


@pytest.mark.parametrize("pattern", ["film(", "", "(?P<a>x)(?P<a>y)"])
def test_what_is_no_pattern_is_refused_before_images_are_looked_for(tmp_path, pattern):
    with pytest.raises(SettingsError, match=r"--groups-from .*give one like 'film\(\\d\+\)_'"):
        load_images(tmp_path / "nowhere", groups_from=pattern)


def test_a_pattern_that_some_names_lack_is_an_error_that_says_how_many_and_what_to_write(films):
    with pytest.raises(DataError, match=r"names of 35 of 40 images, the first being cat/film0_000\.png") as error:
        load_images(films, groups_from=r"film(3)_")
    written = str(error.value).split("give '")[1].split("' to")[0]
    data = load_images(films, groups_from=written, test_share=0.0)
    groups, films_ = data.train.groups, film_of(data.train)
    assert len(np.unique(groups[films_ == 3])) == 1
    assert len(np.unique(groups)) == 36


def test_what_is_written_for_a_pattern_without_parentheses_means_the_same(films):
    with pytest.raises(DataError) as error:
        load_images(films, groups_from="film3")
    written = str(error.value).split("give '")[1].split("' to")[0]
    data = load_images(films, groups_from=written, test_share=0.0)
    assert len(np.unique(data.train.groups)) == 36


def test_groups_in_both_of_given_splits_are_named(films, tmp_path_factory):
    root = tmp_path_factory.mktemp("given")
    for place in sorted(films.glob("*/*.png")):
        split = "test" if place.stem.endswith("004") and "film5" not in place.stem else "train"
        target = root / split / place.parent.name / place.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(place.read_bytes())
    data = load_images(root, groups_from=r"film(\d+)_")
    (told,) = [note for note in data.leaks if "groups" in note]
    assert told.startswith("6 of 6 groups of test images are among the training images, too: 7 test images are of a")
    assert not any("groups" in note for note in load_images(root).notes)


def test_a_class_of_one_film_stays_in_training_and_is_named(films):
    data = load_images(films, groups_from=r"^(dog|cat/film\d+)")
    assert set(data.test.labels) == {0}
    assert any("1 of 2 classes are in one group only" in note and "dog" in note for note in data.notes)


def test_groups_stay_with_their_images(films):
    data = load_images(films, groups_from=r"film(\d+)_", max_per_class=7)
    assert len(data.train) == 14
    assert len(data.train.groups) == 14
    plain = load_images(films, max_per_class=7)
    assert plain.train.fingerprint != data.train.fingerprint
