"""The command line as a person meets it: tables, files, hints, failures in one line, and help that is quick."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tightframe.cli import ELSEWHERE, JOBS, commands
from tightframe.errors import DataError

SHORT = ("--epochs", "2", "--lr", "0.05", "--weight-decay", "0.0001")


def test_measure_shows_a_row_a_layer_and_says_what_next(run, images, names, tmp_path):
    status, out, _ = run("measure", images, "--model", names["wide"], "--json", tmp_path / "rows.json")
    assert status == 0
    assert re.search(r"layer1\.0 .*\nlayer2\.0 .*\nlayer3\.0 .*\nlayer4\.0 .*\npenultimate", out)
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["layer"] for row in rows["rows"]] == ["layer1.0", "layer2.0", "layer3.0", "layer4.0", "penultimate"]
    assert rows["settings"]["origin"]["uri"] == names["wide"]
    assert "torch" in rows["versions"]
    following = re.search(r"next: (.*)", out)
    assert following is not None
    assert str(images) in shlex.split(following[1])
    assert names["wide"] in shlex.split(following[1])


def test_what_comes_next_names_a_table_as_it_was_named(run, images, names, tmp_path):
    paths = [path.relative_to(images) for path in sorted(images.rglob("*.png"))]
    lines = ["photo;kind", *(f"{path};{path.parent.name}" for path in paths)]
    (tmp_path / "set.csv").write_text("\n".join(lines))
    asked = ("--root", str(images), "--image-column", "photo", "--label-column", "kind")
    status, out, _ = run("measure", tmp_path / "set.csv", "--model", names["wide"], *asked)
    assert status == 0
    following = shlex.split(re.search(r"next: (.*)", out)[1])
    assert following[2:9] == [str(tmp_path / "set.csv"), *asked]


def test_rank_shows_the_best_first_and_failures_in_words(run, images, names):
    status, out, _ = run("rank", images, "--models", *names.values(), "timm/resnett18", "--sort-by", "nc1")
    assert status == 0
    assert "✗ resnett18" in out
    assert "resnet18" in out
    assert max(map(len, out.split("next:")[0].splitlines())) <= 80


def test_groups_are_said_kept_apart_and_handed_on(run, images, names):
    pattern = r"(\d)\.png"  # the last digit of a name
    status, out, _ = run("rank", images, "--models", names["wide"], "--groups-from", pattern)
    assert status == 0
    assert "groups; no split or fold parts one" in " ".join(out.split())
    assert f"next: tightframe tune '{images}' --groups-from '{pattern}' --model" in out
    status, _, err = run("rank", images, "--models", names["wide"], "--groups-from", "film(")
    assert status == 1
    assert "is no regular expression" in err


def test_fewshot_shows_a_row_for_each_classifier_and_number_of_shots(run, images, names, tmp_path):
    (tmp_path / "classes.txt").write_text("digit 5\ndigit 7\ndigit 9\n")
    command = ("fewshot", images, "--model", names["wide"], "--ways", "2", "--queries", "3", "--episodes", "20")
    status, out, err = run(*command, "--classes", tmp_path / "classes.txt", "--json", tmp_path / "rows.json")
    assert status == 0
    assert re.search(r"logistic +1 .*\n(.*\n)*cosine +5 ", out)
    assert "5-shot episodes" in err  # progress
    found = json.loads((tmp_path / "rows.json").read_text())
    assert [row["shots"] for row in found["rows"]] == [1] * 4 + [5] * 4
    assert found["settings"]["classes"] == ["digit 5", "digit 7", "digit 9"]
    status, _, err = run(*command, "--shots", "1", "3", "9")
    assert status == 1
    assert "0 of 5 classes have the 12 images" in err.replace("\n", " ")
    status, _, err = run(*command, "--shots", "1", "x")
    assert status == 2
    assert "--shots" in err


@pytest.mark.slow
def test_pretrain_shows_epochs_and_leaves_a_model(run, images, tmp_path):
    short = ("--epochs", "12", "--batch-size", "16", "--projector", "1")
    command = ("pretrain", images, "--arch", "cifar_resnet8", "--out", tmp_path / "net", *short)
    status, out, err = run(*command)
    assert status == 0, err
    assert [int(found) for found in re.findall(r"^ *(\d+) +\d", out, re.M)] == [2, 4, 6, 8, 10, 12]
    assert "pre-training cifar_resnet8" in err.replace("\n", " ")  # progress
    assert run(*command)[0] == 1
    assert run(*command, "--resume")[1] == out
    assert run("measure", images, "--model", f"local-dir:{tmp_path / 'net'}")[0] == 0


@pytest.mark.slow
def test_study_lists_runs_and_says_what_came_of_it(run, names, tmp_path):
    status, out, err = run("study", "list")
    assert status == 0, err
    assert re.search(r"^layers +from layer to layer", out, re.M)
    command = ("study", "layers", "--models", names["wide"], "--data", "digits:5-9", "--max-per-class", "8")
    status, out, err = run(*command, "--out", tmp_path / "out")
    assert status == 0, err
    told = out.replace("\n", " ")
    assert "inconclusive: the more collapsed a model's layer" in told
    assert f"beside it: {tmp_path / 'out' / 'report.html'}" in out
    assert (tmp_path / "out" / "report.html").is_file()
    status, _, err = run("study", "layer")
    assert status == 1
    assert "nearest: layers" in err


def test_tune_saves_and_predict_reads(run, images, tuned):
    shown = sorted(images.rglob("*.png"))[:3]
    status, out, _ = run("predict", tuned, *shown)
    assert status == 0
    assert len(re.findall(r"digit \d +\d+\.\d %", out)) == 3


def test_predictions_as_json(run, images, tuned, tmp_path):
    image = next(images.rglob("*.png"))
    run("predict", tuned, image, "--json", tmp_path / "said.json")
    (row,) = json.loads((tmp_path / "said.json").read_text())["rows"]
    assert row["path"] == str(image)
    assert row["predicted"] == max(row["probabilities"], key=row["probabilities"].get)
    assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5)


def test_tune_into_a_folder_in_use_is_refused_and_resume_loads_it(run, images, names, tuned):
    command = ("tune", images, "--model", names["wide"], "--out", tuned, "--block", "layer3.0", *SHORT)
    status, _, err = run(*command)
    assert status == 1
    assert "--resume" in err
    status, out, _ = run(*command, "--resume")
    assert status == 0
    assert "discriminant" in out


def test_tune_compares_methods(run, images, names, tmp_path):
    command = ("tune", images, "--model", names["wide"], "--compare", "linear, scl", "--out", tmp_path / "ways")
    training = ("--epochs", "2", "--lr", "0.05", "0.01", "--weight-decay", "0.0001", "--json", tmp_path / "rows.json")
    status, out, _ = run(*command, *training)
    assert status == 0
    assert re.search(r"linear +–? .*\n *scl +layer\d", out)
    assert "Expected accuracy" in out
    found = json.loads((tmp_path / "rows.json").read_text())
    assert [row["method"] for row in found["rows"]] == ["linear", "scl"]
    assert all(row["expected_low"] <= row["expected_accuracy"] for row in found["rows"])
    following = re.search(r"next: (.*)", out)
    assert following is not None
    assert run(*shlex.split(following[1])[1:3], next(images.rglob("*.png")))[0] == 0


def test_methods_to_compare_are_checked_before_anything_is_loaded(run):
    tune = ("tune", "nowhere", "--model", "x", "--out", "o")
    status, _, err = run(*tune, "--compare", "linear,magic")
    assert status == 1
    assert 'no method "magic"; choose auto, discriminant, linear, layer, scl, partial,' in err.replace("\n", " ")
    status, _, err = run(*tune, "--compare", "linear,full", "--method", "layer")
    assert status == 1
    assert "not both" in err


@pytest.mark.slow
def test_transfer_on_folders(run, images, names, tmp_path):
    command = ("transfer", images, "--models", *names.values(), "--out", tmp_path / "run", *SHORT)
    status, out, err = run(*command, "--methods", "linear", "scl")
    assert status == 0
    assert "tuning scl" in err  # progress
    assert "Trainable" in out
    assert "report.html" in out
    assert (tmp_path / "run" / "report.html").is_file()


def test_methods_may_be_given_with_commas(run, images, names, tmp_path):
    command = ("transfer", images, "--models", names["wide"], "--out", tmp_path / "run", *SHORT)
    assert run(*command, "--methods", "linear,layer", "--block", "layer4.0")[0] == 0
    assert (tmp_path / "run" / "layer").is_dir()


@pytest.mark.parametrize(("out", "models"), [("run", "run-models"), (".", "here-models"), ("..", "above-models")])
def test_models_of_the_digits_lie_beside_the_folder(out, models, tmp_path, monkeypatch):
    (tmp_path / "above" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "above" / "here")
    assert commands._beside(Path(out)).name == models


def test_nothing_lies_beside_the_root(run):
    status, _, err = run("transfer", "digits", "--out", "/")
    assert status == 1
    assert "--out /" in err


def test_transfer_of_other_images_needs_no_models(run, images, tmp_path, monkeypatch):
    """Where the hub can't be reached, each of the default list says so."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    status, _, err = run("transfer", images, "--out", tmp_path / "run")
    assert status == 1
    assert "none of the models could be used" in err
    assert "mobilenetv3_large_100" in err


@pytest.mark.slow
def test_bad_files_stop_it_by_name_or_are_skipped_and_counted(run, images, names, tmp_path):
    import shutil

    root = tmp_path / "with bad"
    shutil.copytree(images, root)
    (root / "digit 5" / "broken.png").write_bytes(b"\x89PNG nothing more")
    status, _, err = run("measure", root, "--model", names["narrow"])
    assert status == 1
    assert "broken.png" in err.replace("\n", "")
    for command in (("measure", "--model"), ("rank", "--models")):
        status, out, _ = run(command[0], root, command[1], names["narrow"], "--skip-bad")
        assert status == 0
        assert "1 file was left out" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("measure", "nowhere", "--model", "timm/resnet18"), "no such folder"),
        (("measure", "digits", "--model", "resnet18"), "timm/NAME"),
        (("measure", "digits", "--model", "timm/resnet18", "--no-pretrained", "--layers", "layer9"), "nearest"),
        (("rank", "digits", "--models", "timm/resnet18", "--no-pretrained", "--sort-by", "beauty"), "choose"),
        (("tune", "digits", "--model", "x", "--out", "o", "--method", "magic"), "timm/NAME"),
        (("measure", "digits", "--model", "x", "--input-size", "1", "2", "3"), "--input-size"),
        (("measure", "digits", "--max-per-class", "0", "--model", "x"), "ask for 1 or more"),
        (("predict", "nowhere", "a.png"), "tightframe.json"),
    ],
)
def test_what_can_not_be_done_is_said_in_words(run, arguments, says):
    status, out, err = run(*arguments)
    assert status == 1
    assert says in err.replace("\n", " ")
    assert "Traceback" not in out + err


def test_a_json_file_that_can_not_be_written_is_said_before_the_work(run):
    status, _, err = run("measure", "nowhere", "--model", "x", "--json", "/nonexistent/rows.json")
    assert status == 2
    assert "can't be written" in err


def test_a_folder_that_can_not_be_written_is_said_in_words(run, images, names, tmp_path):
    (tmp_path / "file").touch()
    for option in (("measure", "--model", "--feature-cache"), ("transfer", "--models", "--out")):
        status, out, err = run(option[0], images, option[1], names["narrow"], option[2], tmp_path / "file" / "x")
        assert status == 1
        assert "file" in err
        assert "Traceback" not in out + err


def test_a_list_in_which_nothing_can_be_ranked_fails(run, images):
    status, out, err = run("rank", images, "--models", "timm/nope", "local-dir:nowhere")
    assert status == 1
    assert "✗ nope" in out
    assert "none of the models" in err


@pytest.mark.slow
def test_json_into_a_link_or_a_pipe_leaves_it_what_it_is(run, images, names, tmp_path):
    (tmp_path / "rows.json").touch()
    (tmp_path / "link.json").symlink_to(tmp_path / "rows.json")
    assert run("measure", images, "--model", names["narrow"], "--json", tmp_path / "link.json")[0] == 0
    assert (tmp_path / "link.json").is_symlink()
    assert json.loads((tmp_path / "rows.json").read_text())["job"] == "measure"
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    assert run("measure", images, "--model", names["narrow"], "--json", pipe)[0] == 0
    os.close(reader)
    assert pipe.is_fifo()


def test_messages_can_not_drive_the_terminal(run):
    _, _, err = run("measure", "no\x1b[31m\u202ewhere", "--model", "x")
    assert "\x1b" not in err
    assert "\u202e" not in err
    assert "where" in err


def test_names_are_never_read_as_markup(run):
    status, _, err = run("measure", "[red]nowhere[/red]", "--model", "x")
    assert status == 1
    assert "[red]nowhere[/red]" in err


def test_an_interrupt_is_no_traceback(run, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("tightframe.cli.commands.load_images", interrupted)
    status, _, err = run("measure", "digits", "--model", "x")
    assert status == 130
    assert "run the same command again" in err.replace("\n", "")


@pytest.mark.parametrize("command", JOBS)
def test_help_explains_every_option_and_shows_an_example(run, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    status, out, _ = run(command, "--help")
    assert status == 0
    assert f"Example: tightframe {command} " in out
    module = importlib.import_module(f"tightframe.cli.{ELSEWHERE.get(command, 'commands')}")
    for source in vars(module)[f"{command}_command"].sources:
        for one in source.parameters():
            (option,) = one.annotation.__metadata__
            assert re.fullmatch(r".{10,}[.)]", option.help), (command, one.name, option.help)
    if command in ("rank", "measure", "predict", "evaluate"):
        assert len(out.splitlines()) <= 80


@pytest.mark.parametrize("command", ["transfer", "tune"])
def test_what_people_use_first_comes_before_the_rest(run, command):
    _, out, _ = run(command, "--help")
    first, _, rest = out.partition("More training options")
    assert first.count("--") < 45
    assert {"--epochs", "--lr", "--augment"} <= set(re.findall(r"--[a-z-]+", first))
    assert {"--ema-decay", "--skip-scale", "--prefix-cache-gb"} <= set(re.findall(r"--[a-z-]+", rest))


@pytest.mark.parametrize("command", ["measure", "layers", "rank", "fewshot", "pretrain", "tune", "transfer"])
def test_where_images_are_is_told_by_every_command(run, command, monkeypatch):
    told = {"image": "file", "label": "kind", "split": "fold", "group": "who"}
    given = []

    def loaded(source, reading):
        given.append(reading)
        raise DataError("so far and no further")

    monkeypatch.setattr("tightframe.data.loading.load_source", loaded)
    typed = ["--root", "here", *(f"--{name}-column={value}" for name, value in told.items())]
    out = ["--out", "out"] if command in ("pretrain", "tune") else []
    models = ["--models" if command in ("rank", "transfer") else "--model", "timm/x"] * (command != "pretrain")
    status, _, error = run(command, "set.csv", *models, *out, *typed, "--download")
    assert (status, "so far" in error) == (1, True)
    assert (vars(given[0].columns), given[0].root, given[0].download) == (told, Path("here"), True)


def test_help_does_not_wait_for_pytorch():
    code = "import sys; from tightframe.cli import main\ntry: main(['--help'])\nfinally: print('torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.splitlines()[-1] == "False"


def test_predict_takes_any_image_format(run, tuned, tmp_path):
    for mode, suffix in (("CMYK", "jpg"), ("P", "gif"), ("RGBA", "png"), ("I;16", "png"), ("1", "bmp")):
        image = tmp_path / f"{suffix}-{mode.replace(';', '')}.{suffix}"
        Image.new(mode, (20, 14)).save(image)
        assert run("predict", tuned, image)[0] == 0, mode


def test_help_names_what_the_code_knows():
    from tightframe.decide.ranking import orders
    from tightframe.jobs import compare, rank, transfer, tune
    from tightframe.tuning import config, methods
    from tightframe.tuning.methods import METHODS

    def numbers(name):
        text = re.search(rf"^        {name}: (.*?)\n        \w+: ", config.TrainConfig.__doc__ or "", re.M | re.S)[1]
        return [float(word) for word in re.findall(r"(?<![\w.])\.?\d[\d.]*(?<!\.)", text)]

    known = [methods.ONE_BLOCK, methods.MANY_BLOCKS, *config.LRS, *config.TRANSFORMER_LRS, *config.PROBE_LRS]
    assert numbers("lr") == known
    assert f" {config.HEAD_LR:g}".replace("0.", ".") in (config.TrainConfig.__doc__ or "")
    assert numbers("weight_decay") == [*config.WEIGHT_DECAYS, *config.TRANSFORMER_WEIGHT_DECAYS]
    told = rank.rank.__doc__ or ""
    assert {"expected_accuracy", "probe_accuracy", "knn_accuracy", "nc1", "logme"} <= set(orders())
    assert "expected_accuracy, probe_accuracy, knn_accuracy, nc1, logme" in told
    named = ", ".join([*METHODS][:-1]) + f" or {[*METHODS][-1]}"
    for job in (tune.tune, compare.compare, transfer.transfer):
        assert named in " ".join((job.__doc__ or "").split()), f"{job.__name__} names other methods than there are"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["rnk", "x"], "rank"),
        (["transfer", "x", "--model", "y"], "--models"),
        (["measure", "x"], "--model"),
        (["tune", "x", "--model", "y", "--out", "z", "--lr", "fast"], "fast"),
        (["tune", "x", "--model", "y", "--out", "z", "--augment", "cutout"], "randaugment"),
    ],
)
def test_wrong_usage_is_one_line_that_says_what_was_meant(run, arguments, says):
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert says in err
    assert "Traceback" not in err


@pytest.mark.slow
def test_json_on_standard_output_is_nothing_but_json(run, images, names):
    status, out, _ = run("measure", images, "--model", names["narrow"], "--json", "-")
    assert status == 0
    assert json.loads(out)["job"] == "measure"


def test_a_folder_of_several_tuned_models_names_them(run, tuned):
    status, _, err = run("predict", tuned.parent, "x.png")
    assert status == 1
    assert str(tuned) in err.replace("\n", "")


@pytest.mark.slow
def test_a_one_byte_terminal_shows_everything_in_characters_that_it_has(images, names):
    model = ("--model", names["narrow"], "--layers", "layer4.0")
    command = [sys.executable, "-m", "tightframe", "measure", str(images), *model]
    settings = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, env=settings, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode("ascii")
    out = done.stdout.decode("ascii")
    assert re.search(r"\d-\d", out)  # an interval
    assert "* " in out  # a note
