"""Speed and exactness of the post-hoc fits beside other libraries, all in one run on one core.

    OMP_NUM_THREADS=1 python benchmarks/posthoc.py            # about two minutes
    OMP_NUM_THREADS=1 python benchmarks/posthoc.py --write    # also docs/results/posthoc-speed.md

Fits are called once per round, in turn, so that a busy machine slows all of them alike; the table
shows the fastest of the rounds. Ours start from an answer table, the others from the arrays they
take: scikit-learn logits, netcal probabilities, the LBFGS recipe of Guo et al.'s code a tensor.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy and torch start their threads

import argparse
import platform
import sys
import time
import warnings
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
from scipy.special import log_softmax, softmax

from calibrant.answers import AnswerTable
from calibrant.posthoc import LABELLED, TemperatureScaling

ROOT = Path(__file__).resolve().parents[1]
N, K = 100_000, 4
ROUNDS = 7
TEMPERATURES = (0.5, 1.0, 3.0, 20.0)


def answers(temperature):
    rng = np.random.default_rng(0)
    z = 4 * rng.normal(size=(N, K))
    p = softmax(z / temperature, axis=1)
    labels = (p.cumsum(axis=1) > rng.random(N)[:, None]).argmax(axis=1)
    return AnswerTable.from_probs(softmax(z, axis=1), labels).with_logprobs(z)


def ours(table):
    return TemperatureScaling().fit(table).temperature


def scikit_learn(table):
    from sklearn.calibration import _TemperatureScaling

    return 1 / _TemperatureScaling().fit(table.logprobs, table.labels).beta_


def netcal(table):
    from netcal.scaling import TemperatureScaling as Reference

    reference = Reference()
    reference.fit(table.probs(), table.labels.copy())
    return 1 / float(reference.temperature[0])


def lbfgs(table):
    """The widely copied recipe: start at 1.5, LBFGS with lr .01, 50 iterations, float32."""
    import torch

    logits, labels = torch.tensor(table.logprobs).float(), torch.tensor(table.labels)
    temperature = torch.nn.Parameter(torch.ones(1) * 1.5)
    optimiser = torch.optim.LBFGS([temperature], lr=0.01, max_iter=50)

    def closure():
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(logits / temperature, labels)
        loss.backward()
        return loss

    optimiser.step(closure)
    return temperature.item()


LIBRARIES = {"calibrant": ours, "scikit-learn": scikit_learn, "netcal": netcal, "LBFGS": lbfgs}


def step_left(table, temperature):
    """Size of the next Newton step in log T: near the optimum, the relative error of T."""
    z, rows = table.logprobs / temperature, np.arange(len(table))
    p = np.exp(log_softmax(z, axis=1))
    mean = (p * z).sum(axis=1)
    slope = (mean - z[rows, table.labels]).mean()
    return abs(slope / ((p * z**2).sum(axis=1) - mean**2).mean())


def fastest(functions, rounds=ROUNDS):
    """Best seconds and last result of each function, called in turn."""
    best, result = dict.fromkeys(functions, np.inf), {}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            result[name] = function()
            best[name] = min(best[name], time.perf_counter() - start)
    return best, result


def temperatures():
    yield "| true T | library | ms | / calibrant | T | Newton step left |"
    yield "|---:|---|---:|---:|---:|---:|"
    for true in TEMPERATURES:
        table = answers(true)
        fits = {name: partial(fit, table) for name, fit in LIBRARIES.items()}
        best, found = fastest(fits)
        for name, seconds in best.items():
            yield (
                f"| {true:g} | {name} | {1e3 * seconds:.0f} | {seconds / best['calibrant']:.2f} "
                f"| {found[name]:.6f} | {step_left(table, found[name]):.0e} |"
            )


def every_method():
    table = answers(3.0)
    best, _ = fastest(
        {n: partial(lambda c: c().fit(table), c) for n, c in LABELLED.items()}, rounds=3
    )
    yield "| method | fit, ms |"
    yield "|---|---:|"
    for name, seconds in best.items():
        yield f"| {name} | {1e3 * seconds:.0f} |"


def report():
    yield f"{N:,} questions x {K} options, one core, best of {ROUNDS} interleaved rounds."
    yield ""
    yield from temperatures()
    yield ""
    yield from every_method()
    yield ""
    packages = ("numpy", "scipy", "scikit-learn", "netcal", "torch")
    yield f"Python {platform.python_version()}, " + ", ".join(f"{p} {version(p)}" for p in packages)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write docs/results/posthoc-speed.md")
    write = parser.parse_args().write
    warnings.filterwarnings("ignore", module="pyro")
    lines = list(report())
    print("\n".join(lines))
    if write:
        page = ROOT / "docs" / "results" / "posthoc-speed.md"
        text = "\n".join(["# Speed of the post-hoc fits", "", *lines, ""])
        page.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
