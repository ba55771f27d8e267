"""NeuralCollapse, through all that torchmetrics and training loops do to a metric, against moments of all features."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
import textwrap
from copy import deepcopy
from math import isnan
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

import tightframe.features.moments as moments_module
from tightframe.errors import MeasureError, TightframeError
from tightframe.features.moments import ClassMoments
from tightframe.metrics.collapse import Head
from tightframe.metrics.summary import collapse_metrics
from tightframe.metrics.torchmetric import NeuralCollapse, check_settings

CLASSES, DIMENSION = 5, 12
SPLITS = {"whole": [900], "ones": [1] * 900, "uneven": [7, 0, 400, 1, 492], "batches": [64] * 14 + [4]}


def sample(count: int = 900, seed: int = 0, offset: float = 3.0, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.arange(CLASSES), torch.randint(CLASSES, (count - CLASSES,), generator=generator)])
    means = torch.randn(CLASSES, DIMENSION, generator=generator, dtype=torch.float64)
    noise = torch.randn(count, DIMENSION, generator=generator, dtype=torch.float64)
    return (means[labels] + 0.4 * noise + offset).to(dtype), labels


def following(**options: object) -> NeuralCollapse:
    return NeuralCollapse(CLASSES, DIMENSION, **options)


def expected(features: Tensor, labels: Tensor, head: Head | None = None, weighting: str = "class") -> dict[str, float]:
    moments = ClassMoments.from_features(features.double(), labels, CLASSES)
    return dict(collapse_metrics(moments, head, weighting=weighting))


def agrees(found: dict[str, Tensor], wanted: dict[str, float], rel: float = 1e-9) -> bool:
    assert all(value.shape == () and value.dtype == torch.float64 for value in found.values())
    plain = [{name: float(value) for name, value in values.items()} for values in (found, wanted)]
    assert plain[0] == pytest.approx(plain[1], rel=rel, abs=1e-12)
    return True


def all_nan(found: dict[str, Tensor]) -> bool:
    return len(found) >= 8 and all(isnan(float(value)) for value in found.values())


def feed(metric: NeuralCollapse, features: Tensor, labels: Tensor, size: int = 64) -> NeuralCollapse:
    for some, which in zip(features.split(size), labels.split(size), strict=True):
        metric.update(some, which)
    return metric


@pytest.fixture
def linear() -> nn.Linear:
    linear = nn.Linear(DIMENSION, CLASSES)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(CLASSES, DIMENSION, generator=torch.Generator().manual_seed(9)))
    return linear


def as_head(linear: nn.Linear) -> Head:
    return Head(linear.weight.detach().double(), linear.bias.detach().double())


# What it computes


@pytest.mark.slow
@pytest.mark.parametrize("weighting", ["class", "sample"])
@pytest.mark.parametrize("split", SPLITS)
def test_any_split_into_batches_gives_the_values_of_all(split, weighting):
    features, labels = sample()
    metric = following(weighting=weighting)
    for some, which in zip(features.split(SPLITS[split]), labels.split(SPLITS[split]), strict=True):
        metric.update(some, which)
    assert agrees(metric.compute(), expected(features, labels, weighting=weighting))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32])
def test_any_dtype_is_measured_as_it_is(dtype):
    features, labels = sample(dtype=torch.float64)
    features = (10 * features).to(dtype)
    assert agrees(feed(following(), features, labels).compute(), expected(features, labels))


def test_arrays_are_taken_too():
    features, labels = sample()
    metric = following()
    metric.update(features.numpy(), labels.int().numpy())
    assert agrees(metric.compute(), expected(features, labels))


def test_offsets_do_not_cancel():
    features, labels = sample(offset=1e5)
    assert agrees(feed(following(), features, labels).compute(), expected(features - 1e5, labels), rel=1e-7)


def test_the_head_is_read_when_asked(linear):
    features, labels = sample()
    metric = feed(following(head=linear), features, labels)
    first = metric.compute()
    assert agrees(first, expected(features, labels, as_head(linear)))
    with torch.no_grad():
        linear.weight.neg_().add_(0.1)
    assert agrees(metric.compute(), expected(features, labels, as_head(linear)))
    assert metric.compute()["nc3"] != first["nc3"]
    assert linear.weight.requires_grad
    assert agrees(feed(following(head=as_head(linear)), features, labels).compute(), metric.compute())


def test_no_weights_of_the_head_are_registered(linear):
    metric = following(head=linear)
    metric.half().to(torch.float16)
    assert not list(metric.parameters())
    assert not metric.state_dict()
    assert linear.weight.dtype == torch.float32


def test_the_moments_are_to_be_had():
    features, labels = sample()
    metric = feed(following(), features, labels)
    moments, whole = metric.moments, ClassMoments.from_features(features, labels, CLASSES)
    for name in moments_module.FIELDS:
        torch.testing.assert_close(getattr(moments, name), getattr(whole, name), rtol=1e-10, atol=1e-9)
    moments.means.zero_()
    moments.scatter.zero_()
    assert agrees(metric.compute(), expected(features, labels))


# What it takes


def test_memory_stays_bounded(linear):
    metric = following(head=linear)
    size = metric.table.numel()
    features, labels = sample()
    for some, which in zip(features.split(50), labels.split(50), strict=True):
        metric.update(some, which)
        metric(some, which)
        assert metric.table.numel() <= 2 * size  # forward puts a batch below what was seen
    metric.update(features, labels)
    assert metric.table.numel() == size


def test_inputs_are_neither_changed_nor_kept():
    features, labels = sample()
    before = features.clone(), labels.clone()
    metric = feed(following(), features, labels)
    assert torch.equal(features, before[0])
    assert torch.equal(labels, before[1])
    features.zero_()
    labels.zero_()
    assert agrees(metric.compute(), expected(*before))


def test_gradients_neither_flow_nor_are_kept():
    features, labels = sample()
    features.requires_grad_()
    metric = following()
    values = metric(features * 2, labels)
    metric.update(features * 2, labels)
    assert not any(value.requires_grad for value in values.values())
    assert not metric.table.requires_grad


def test_labels_and_shapes_that_do_not_fit_are_refused_and_forgotten():
    features, labels = sample()
    metric = feed(following(), features, labels)
    for rows, which, message in [
        (features, labels + 1, "labels run from 1 to 5"),
        (features, labels - 1, "labels run from -1 to 3"),
        (features, labels.double(), "must be integers"),
        (features[:, :3], labels, r"expected \(samples, 12\)"),
        (features, labels[1:], "900 features need as many labels"),
    ]:
        with pytest.raises(MeasureError, match=message):
            metric.update(rows, which)
    assert agrees(metric.compute(), expected(features, labels))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((1, DIMENSION, "class", None), "1 classes of 12 values"),
        ((CLASSES, 0, "class", None), "5 classes of 0 values"),
        ((CLASSES, DIMENSION, "none", None), 'no weighting "none"'),
        ((CLASSES, DIMENSION, "class", nn.Linear(3, CLASSES)), "maps 3 values to 5 classes"),
        ((CLASSES, DIMENSION, "class", nn.Sequential()), r"Sequential: give its nn\.Linear"),
    ],
)
def test_settings_that_make_no_sense(given, message):
    with pytest.raises(MeasureError, match=message):
        check_settings(*given)


def test_settings_are_checked_when_made(linear):
    with pytest.raises(MeasureError, match="maps 12 values to 5 classes, the metric has 12 and 4"):
        NeuralCollapse(4, DIMENSION, head=linear)


# Too few samples


def test_too_few_samples_are_nan_and_no_error(linear):
    features, labels = sample()
    metric = following(head=linear)
    metric.update(features[:0], labels[:0])
    assert all_nan(metric.compute())
    one_each = torch.stack([(labels == k).nonzero()[0, 0] for k in range(CLASSES)])
    metric.update(features[one_each[:-1]], labels[one_each[:-1]])
    assert all_nan(metric.compute())  # a class without samples
    metric.update(features[one_each[-1:]], labels[one_each[-1:]])
    assert all_nan(metric.compute())  # no class with two
    with pytest.raises(MeasureError, match="one sample a class"):
        collapse_metrics(metric.moments)
    metric.update(features, labels)
    values = metric.compute()
    assert not any(isnan(float(value)) for value in values.values())
    assert list(values) == list(expected(features, labels, as_head(linear)))


def test_before_the_first_update_torchmetrics_warns_and_nothing_breaks():
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        assert all_nan(following().compute())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_model_that_overflows_is_seen_until_reset(bad):
    features, labels = sample(dtype=torch.float32)
    broken = features.clone()
    broken[[3, 70], 1] = bad
    metric = feed(following(), broken, labels)
    assert all_nan(metric.compute())
    assert int(metric.overflowed) == 2
    assert metric.moments.samples == len(labels) - 2
    metric.reset()
    assert int(metric.overflowed) == 0
    assert agrees(feed(metric, features, labels).compute(), expected(features, labels))


def test_squares_that_overflow_are_nan():
    features, labels = sample()
    assert all_nan(feed(following(), features * 1e200, labels).compute())


# What training loops do


def test_reset_and_use_again():
    first, second = sample(seed=1), sample(seed=2)
    metric = feed(following(), *first)
    metric.compute()
    metric.update(first[0][:9], first[1][:9])
    metric.reset()
    assert agrees(feed(metric, *second).compute(), expected(*second))


def test_compute_does_not_end_the_count():
    features, labels = sample()
    metric = feed(following(), features[:500], labels[:500])
    assert agrees(metric.compute(), expected(features[:500], labels[:500]))
    metric.update(features[500:], labels[500:])
    assert agrees(metric.compute(), expected(features, labels))
    assert agrees(metric.compute(), expected(features, labels))


@pytest.mark.parametrize("dist_sync_on_step", [False, True])
def test_forward_gives_the_batch_and_counts_it(dist_sync_on_step):
    features, labels = sample()
    metric = following(dist_sync_on_step=dist_sync_on_step)
    metric.update(features[:50], labels[:50])
    assert agrees(metric(features[50:450], labels[50:450]), expected(features[50:450], labels[50:450]))
    assert all_nan(metric(features[450:452], labels[450:452]))
    assert agrees(metric(features[452:], labels[452:]), expected(features[452:], labels[452:]))
    assert agrees(metric.compute(), expected(features, labels))
    assert metric.moments.samples == len(labels)


@pytest.mark.parametrize("within", [torch.no_grad, torch.inference_mode])
def test_batches_from_within_and_without_other_modes(within):
    features, labels = sample(6000)
    metric = following()
    with within():
        feed(metric, features[:4009] * 1, labels[:4009] * 1, 999)
        metric.compute()
        metric.update(features[:9] * 1, labels[:9] * 1)
        metric.reset()
        feed(metric, features[:2009] * 1, labels[:2009] * 1, 999)
    feed(metric, features[2009:], labels[2009:], 999)
    assert agrees(metric.compute(), expected(features, labels))
    metric.reset()
    assert agrees(feed(metric, features, labels).compute(), expected(features, labels))


def test_autocast_and_fast_products_cost_no_accuracy(linear):
    features, labels = sample(dtype=torch.float32)
    metric = following(head=linear)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            values = feed(metric, features, labels).compute()
    finally:
        torch.set_float32_matmul_precision(before)
    assert agrees(values, expected(features, labels, as_head(linear)))


# dtype and device


@pytest.mark.parametrize(
    "lower",
    [
        lambda metric: metric.half(),
        lambda metric: metric.bfloat16(),
        lambda metric: metric.set_dtype(torch.float16),
        lambda metric: metric.to(torch.float16),
        lambda metric: nn.ModuleList([metric]).half()[0],
        lambda metric: nn.ModuleList([metric]).to("cpu", torch.bfloat16)[0],
        lambda metric: MetricCollection([metric]).set_dtype(torch.float16)["NeuralCollapse"],
        lambda metric: metric.float(),
    ],
)
def test_states_stay_float64(lower):
    features, labels = sample(offset=100.0)
    metric = feed(following(), features[:500], labels[:500])
    wanted = metric.compute()
    metric.update(features[500:600], labels[500:600])
    metric = lower(metric)
    assert metric.table.dtype == torch.float64
    assert metric.overflowed.dtype == torch.int64
    metric.update(features[600:], labels[600:])
    assert agrees(metric.compute(), expected(features, labels), rel=1e-12)
    metric.reset()
    assert agrees(feed(metric, features[:500], labels[:500]).compute(), wanted, rel=1e-12)


def test_states_move_but_for_devices_without_float64():
    metric = feed(following(), *sample())

    def like_mps(tensor: Tensor) -> Tensor:
        if tensor.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return tensor

    wanted = metric.compute()
    metric._apply(like_mps)
    metric.update(*(part[:0] for part in sample()))
    assert agrees(metric.compute(), wanted)
    metric.to("meta")
    assert metric.table.device.type == metric.device.type == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    features, labels = sample(dtype=torch.float32)
    metric = following().to("cuda")
    feed(metric, features[:400], labels[:400])
    feed(metric, features[400:].cuda(), labels[400:].cuda())
    values = metric.compute()
    assert {value.device.type for value in values.values()} == {"cuda"}
    assert agrees({name: value.cpu() for name, value in values.items()}, expected(features, labels))


@pytest.mark.parametrize("offload", [True, False])
def test_compute_on_cpu(offload):
    features, labels = sample()
    metric = feed(following(compute_on_cpu=offload), features, labels)
    assert agrees(metric.compute(), expected(features, labels))


# Copies, files, collections


@pytest.mark.parametrize("copy", [deepcopy, NeuralCollapse.clone, lambda metric: pickle.loads(pickle.dumps(metric))])
def test_copies_go_their_own_way(copy, linear):
    features, labels = sample()
    metric = feed(following(head=linear), features[:300], labels[:300])
    other = copy(metric)
    other.update(features[300:], labels[300:])
    head = as_head(linear)
    assert agrees(other.compute(), expected(features, labels, head))
    assert agrees(metric.compute(), expected(features[:300], labels[:300], head))


def test_copies_follow_the_head_that_is_trained(linear):
    features, labels = sample()
    metric = following(head=linear)
    clone, model = metric.clone(), deepcopy(nn.ModuleDict({"head": linear, "collapse": metric}))
    collection = MetricCollection([metric]).clone(prefix="val_")
    before = as_head(linear)
    before = Head(before.weight.clone(), before.bias)
    with torch.no_grad():
        linear.weight.neg_().add_(0.1)
    assert agrees(feed(clone, features, labels).compute(), expected(features, labels, as_head(linear)))
    found = feed(collection, features, labels).compute()
    assert float(found["val_nc3"]) == pytest.approx(expected(features, labels, as_head(linear))["nc3"])
    copied = feed(model["collapse"], features, labels).compute()  # the copied model has a head of its own
    assert agrees(copied, expected(features, labels, before))
    with torch.no_grad():
        model["head"].weight.copy_(linear.weight)
    assert agrees(model["collapse"].compute(), expected(features, labels, as_head(linear)))


def test_state_dict_holds_states_when_asked_to():
    features, labels = sample()
    metric = feed(following(), features[:500], labels[:500])
    assert not metric.state_dict()
    metric.persistent(True)
    file = io.BytesIO()
    torch.save(nn.ModuleDict({"collapse": metric}).state_dict(), file)
    file.seek(0)
    other = following()
    other.update(features[500:600], labels[500:600])  # replaced by what is loaded
    other.compute()
    state = torch.load(file, weights_only=True)
    nn.ModuleDict({"collapse": other}).load_state_dict(state)
    assert agrees(other.compute(), expected(features[:500], labels[:500]))  # not what was computed before
    other.update(features[500:], labels[500:])
    assert agrees(other.compute(), expected(features, labels))
    third = following()
    nn.ModuleDict({"collapse": third}).load_state_dict(state)  # which is as it was
    assert third.moments.samples == 500


def test_a_state_of_other_classes_is_refused():
    saved = NeuralCollapse(8, 1)
    saved.persistent(True)
    other = NeuralCollapse(4, 2)
    with pytest.raises(MeasureError, match="4 classes and 2 values, the state given to it 8 and 1"):
        other.merge_state(saved)
    other.load_state_dict(saved.state_dict())
    with pytest.raises(MeasureError, match="the state given to it 8 and 1"):
        other.update(torch.ones(2, 2), torch.zeros(2, dtype=torch.long))
    with pytest.raises(MeasureError, match="no state of a NeuralCollapse"):
        NeuralCollapse(8, 1).merge_state({})


def test_in_a_collection(linear):
    features, labels = sample()
    metrics = MetricCollection(
        {"plain": following(), "with_head": following(head=linear), "by": following(weighting="sample")}
    )
    for some, which in zip(features.split(64), labels.split(64), strict=True):
        metrics.update(some, which)
    assert metrics.compute_groups == {0: ["by", "plain", "with_head"]}
    wanted = {
        "plain": expected(features, labels),
        "with_head": expected(features, labels, as_head(linear)),
        "by": expected(features, labels, weighting="sample"),
    }
    for _ in range(2):  # compute, go on, compute
        found = {name: float(value) for name, value in metrics.compute().items()}
        for name, values in wanted.items():
            assert {key: found[f"{name}_{key}"] for key in values} == pytest.approx(values, rel=1e-9, abs=1e-12)
        metrics.update(features[:0], labels[:0])
    batch = metrics(features[:100], labels[:100])
    assert float(batch["plain_nc1"]) == pytest.approx(expected(features[:100], labels[:100])["nc1"])
    doubled = torch.cat([features, features[:100]]), torch.cat([labels, labels[:100]])
    assert float(metrics.compute()["by_nc1"]) == pytest.approx(expected(*doubled, weighting="sample")["nc1"])
    metrics.reset()
    metrics.update(features, labels)
    assert float(metrics.compute()["with_head_nc1"]) == pytest.approx(wanted["plain"]["nc1"])


# Peers


def test_merging_with_a_peer():
    features, labels = sample()
    here, peer = feed(following(), features[:200], labels[:200]), feed(following(), features[200:], labels[200:])
    here.compute()  # what is kept must not be given again
    peer.compute()
    peer.update(features[:30], labels[:30])
    state = {name: deepcopy(value) for name, value in peer.metric_state.items()}
    here.merge_state(peer)
    both = torch.cat([features, features[:30]]), torch.cat([labels, labels[:30]])
    assert agrees(here.compute(), expected(*both))
    assert all(torch.equal(value, state[name]) for name, value in peer.metric_state.items())
    here.table.zero_()
    here.reset()
    here.update(features, labels)
    peer.update(features[:0], labels[:0])
    shared = torch.cat([features[200:], features[:30]]), torch.cat([labels[200:], labels[:30]])
    assert agrees(peer.compute(), expected(*shared))


def test_a_state_that_was_taken_outlives_reset():
    features, labels = sample()
    metric = following()
    metric.update(features, labels)
    state = metric.metric_state
    metric.reset()
    metric.merge_state(state)
    assert agrees(metric.compute(), expected(features, labels))


def test_merging_into_one_that_saw_nothing():
    features, labels = sample()
    peer = feed(following(), features, labels)
    for incoming in (peer, peer.metric_state):
        empty = following()
        empty.merge_state(incoming)
        assert agrees(empty.compute(), expected(features, labels))
        assert empty.table.data_ptr() != peer.table.data_ptr()
    peer.merge_state(following())
    assert agrees(peer.compute(), expected(features, labels))


PROCESS = """
import sys, warnings
import torch, torch.distributed as dist
from torchmetrics import MetricCollection
from tightframe.metrics.torchmetric import NeuralCollapse
warnings.simplefilter("error")

rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
features, labels = torch.load(f"{folder}/sample.pt")
mine = [slice(0, 613), slice(613, 900), slice(900, 900)][rank]
features, labels = features[mine], labels[mine]
metric = NeuralCollapse(5, 12)
for some, which in zip(features.split(100), labels.split(100)):
    if len(which):  # the last process never updates
        metric.update(some, which)
found = {"all": metric.compute(), "own samples": metric.moments.samples}
metric.update(features[:10], labels[:10])
found["more"] = metric.compute()
metric.sync()
found["synced samples"] = metric.moments.samples
metric.unsync()
metrics = MetricCollection([NeuralCollapse(5, 12)])
metrics.update(features, labels)
found["collection"] = metrics.compute()
step = NeuralCollapse(5, 12, dist_sync_on_step=True)
found["step"] = step(features, labels)
found["after step"] = step.compute()
spoilt = NeuralCollapse(5, 12)
spoilt.update(torch.full((rank, 12), torch.nan), torch.zeros(rank, dtype=torch.int64))
found["nan"] = spoilt.compute()
torch.save(found, f"{folder}/found-{rank}.pt")
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_processes_agree_on_the_values_of_all(tmp_path: Path):
    features, labels = sample(offset=1e3)
    order = torch.argsort(labels, stable=True)  # the first process sees no sample of the last class
    features, labels = features[order], labels[order]
    torch.save((features, labels), tmp_path / "sample.pt")
    (tmp_path / "process.py").write_text(textwrap.dedent(PROCESS))
    running = [
        subprocess.Popen(
            [sys.executable, str(tmp_path / "process.py"), str(rank), "3", str(tmp_path)],
            env=os.environ | {"LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(3)
    ]
    try:
        said = [process.communicate(timeout=120)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0, 0], "".join(said)
    found = [torch.load(tmp_path / f"found-{rank}.pt") for rank in range(3)]
    again = [0, *range(10), *range(613, 623)][1:]
    more = torch.cat([features, features[again]]), torch.cat([labels, labels[again]])
    for here in found:
        for name in ("all", "collection", "step", "after step"):
            assert agrees(here[name], expected(features, labels)), name
        assert agrees(here["more"], expected(*more))
        assert here["synced samples"] == 920
        assert all_nan(here["nan"])
        assert here["all"] == found[0]["all"]  # to the last bit
    assert [here["own samples"] for here in found] == [613, 287, 0]


# Without torchmetrics


@pytest.mark.slow
def test_without_torchmetrics_the_error_says_what_to_install():
    script = textwrap.dedent("""
        import sys
        sys.modules["torchmetrics"] = None
        from tightframe.errors import TightframeError
        try:
            import tightframe.metrics.torchmetric
        except ImportError as error:
            assert isinstance(error, TightframeError)
            print(error)
    """)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "pip install tightframe[torchmetrics]" in done.stdout
    assert issubclass(TightframeError, Exception)
