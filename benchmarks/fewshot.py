"""Logistic regression over few-shot episodes: this library beside a loop over scikit-learn, in one process.

    TIGHTFRAME_SHARED=DIR OMP_NUM_THREADS=1 python benchmarks/fewshot.py --beside "nothing else running" \\
        > benchmarks/results/fewshot.md

Made-up features look like those of a model's last layer: positive, 20 classes of 600, as the test classes of CIFAR-FS
and miniImageNet. With DIR (`zoo/zoo.py`, a builder, and `data/*`) real ones are added. scikit-learn is run as in the
field's own code, at its default tolerance on float32 features; that they are L2-normalized before is not counted. Both
sides read features, fit and classify queries, in turn. The best of a few rounds counts, in processor time: waiting for
other work on the machine is left out, sharing caches with it is not. Logits are compared with scikit-learn's Newton
solver in float64 at 1e-10.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import sklearn
import torch
from sklearn.linear_model import LogisticRegression

import tightframe
from tightframe.backbone import PENULTIMATE
from tightframe.data.class_lists import class_list
from tightframe.probes.episodes import Episodes, Pool, accuracies, draw, logistic

WAYS, SHOTS, QUERIES, EPISODES = 5, (1, 5), 15, 600
CHECKED = 100
"""Episodes whose logits are compared."""
Named = tuple[str, np.ndarray, np.ndarray]


def made_up(dimension: int) -> Named:
    generator = np.random.default_rng(0)
    labels = np.arange(12_000) % 20
    means = 8 * dimension**-0.5 * generator.normal(size=(20, dimension))
    hidden = 0.3 + means[labels] + generator.standard_normal((len(labels), dimension))
    return f"made up, d = {dimension}", np.maximum(hidden, 0).astype(np.float32), labels


def real(shared: Path) -> Iterator[Named]:
    zoo = f"{shared / 'zoo' / 'zoo.py'}:build:"
    for model, images, classes, options in (
        ("resnet20_cifar10", "cifar100", class_list("cifar-fs:test"), {}),
        ("mobilenetv2_100", "dtd10", None, {"input_size": (96, 96)}),
    ):
        data = tightframe.load_images(shared / "data" / images)
        backbone = tightframe.load_backbone(zoo + model, **options)
        splits = [data.train, data.test]
        parts = [part.of_classes(classes) if classes else part for part in splits if part is not None]
        passes = [tightframe.Workspace().features(backbone, part, [PENULTIMATE])[PENULTIMATE] for part in parts]
        labels = np.unique(np.concatenate([part.labels for part in parts]), return_inverse=True)[1]
        features = np.concatenate(passes)
        yield f"{model} on {images}, d = {features.shape[1]}", features, labels


def fitted(features: np.ndarray, support: np.ndarray) -> LogisticRegression:
    return LogisticRegression(max_iter=1000).fit(features[support], np.arange(len(support)) * WAYS // len(support))


def looped(features: np.ndarray, drawn: Episodes) -> np.ndarray:
    """scikit-learn, episode by episode; ``features`` are L2-normalized."""
    truth = np.arange(WAYS).repeat(QUERIES)
    episodes = zip(drawn.support.flatten(1).numpy(), drawn.queries.flatten(1).numpy(), strict=True)
    return np.array([fitted(features, support).score(features[queries], truth) for support, queries in episodes])


def differences(features: np.ndarray, drawn: Episodes) -> tuple[float, float]:
    """Largest difference of a query's logit from the optimum: ours, and scikit-learn's at its default tolerance."""
    scaled = normalized(features).astype(np.float64)
    heads = logistic(Pool.of(features).support(drawn))
    ours = peers = 0.0
    for at in range(CHECKED):
        support, queries = drawn.support[at].flatten().numpy(), drawn.queries[at].flatten().numpy()
        exact = LogisticRegression(solver="newton-cg", tol=1e-10, max_iter=10_000)
        exact.fit(scaled[support], np.arange(len(support)) * WAYS // len(support))
        optimum = exact.decision_function(scaled[queries])
        logits = heads.weights[at].numpy() @ scaled[support] @ scaled[queries].T + heads.bias[at].numpy()[:, None]
        ours = max(ours, float(np.abs(logits.T - optimum).max()))
        usual = fitted(normalized(features), support).decision_function(scaled[queries])
        peers = max(peers, float(np.abs(usual - optimum).max()))
    return ours, peers


def normalized(features: np.ndarray) -> np.ndarray:
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def timed(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def compare(name: str, features: np.ndarray, labels: np.ndarray, rounds: int) -> None:
    """Print a row of the table for each number of shots."""
    scaled, whole = normalized(features), draw(labels, WAYS, max(SHOTS), QUERIES, EPISODES)
    for shots in SHOTS:
        drawn = whole.with_shots(shots)
        times = np.array(
            [
                [
                    timed(lambda drawn=drawn: looped(scaled, drawn)),
                    timed(lambda drawn=drawn: accuracies(features, drawn, ["logistic"])),
                    timed(lambda drawn=drawn: accuracies(features, drawn)),
                ]
                for _ in range(rounds)
            ]
        )
        peer, ours, all_four = times.min(0)
        expected, found = looped(scaled, drawn), accuracies(features, drawn, ["logistic"])["logistic"].numpy()
        off, peers_off = differences(features, drawn)
        print(
            f"| {name} | {shots} | {peer:.2f} s | {ours:.3f} s | {peer / ours:.0f} | {all_four:.3f} s | {off:.0e} "
            f"| {peers_off:.0e} | {100 * expected.mean():.2f} | {100 * found.mean():.2f} "
            f"| {int((np.abs(expected - found) > 1e-9).sum())} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--beside", default="unknown", help="what else was running")
    options = parser.parse_args()
    threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")
    print("# Logistic regression over few-shot episodes, beside scikit-learn\n")
    print(
        f"`python benchmarks/fewshot.py` on {platform.machine()}, {threads} thread; Python "
        f"{platform.python_version()}, PyTorch {torch.__version__}, scikit-learn {sklearn.__version__}, NumPy "
        f"{np.__version__}. Beside it: {options.beside}.\n\n{EPISODES} episodes of {WAYS} classes, {QUERIES} queries "
        f"a class; processor time, best of {options.rounds} rounds, in turn. Differences of logits over {CHECKED} "
        "episodes, from the exact optimum; where scikit-learn stops short of it, a query near a tie may fall the other "
        "way, and the episode differs.\n"
    )
    print(
        "| features | shots | scikit-learn loop | ours | times faster | all four classifiers | our logits off by "
        "| scikit-learn's off by | its accuracy | our accuracy | episodes that differ |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    named = [made_up(dimension) for dimension in (64, 640, 1280)]
    if shared := os.environ.get("TIGHTFRAME_SHARED"):
        named += real(Path(shared))
    for name, features, labels in named:
        compare(name, features, labels, options.rounds)


if __name__ == "__main__":
    main()
