"""Numeric work: a small neural network on synthetic data, the same each time.

It always runs on the CPU; its tasks carry the types of GPU work all the same, since
what rts learns is their runtime.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.app import app

Array = NDArray[np.float64]

#: Ten classes of 8×8 pictures, like the handwritten digits of the UCI archive.
CLASSES, PIXELS = 10, 64
HIDDEN = 64
#: Pictures in all, and those to train on; the rest measure the accuracy.
PICTURES, TRAINING = 4000, 3000
#: Pictures of one step of training, and how far it goes.
BATCH, RATE = 100, 0.1


@cache
def pictures() -> tuple[Array, NDArray[np.int64]]:
    """Return noisy pictures and their classes, always the same."""
    random = np.random.default_rng(7)
    shapes = random.normal(size=(CLASSES, PIXELS))
    labels = random.integers(CLASSES, size=PICTURES)
    return shapes[labels] + random.normal(scale=1.5, size=(PICTURES, PIXELS)), labels


def forward(x: Array, first: Array, second: Array) -> tuple[Array, Array]:
    """Return the hidden layer and the class probabilities."""
    hidden = np.tanh(x @ first)
    scores = hidden @ second
    scores -= scores.max(axis=1, keepdims=True)
    odds = np.exp(scores)
    return hidden, odds / odds.sum(axis=1, keepdims=True)


def fit(epochs: int) -> tuple[Array, Array]:
    """Train by stochastic gradient descent and return both layers' weights."""
    x, labels = pictures()
    x, labels = x[:TRAINING], labels[:TRAINING]
    random = np.random.default_rng(11)
    first = random.normal(scale=0.1, size=(PIXELS, HIDDEN))
    second = random.normal(scale=0.1, size=(HIDDEN, CLASSES))
    wanted = np.eye(CLASSES)[labels]
    for _ in range(epochs):
        for start in range(0, len(x), BATCH):
            part = slice(start, start + BATCH)
            hidden, odds = forward(x[part], first, second)
            error = (odds - wanted[part]) / BATCH
            back = (error @ second.T) * (1 - hidden**2)
            second -= RATE * hidden.T @ error
            first -= RATE * x[part].T @ back
    return first, second


@cache
def trained() -> tuple[Array, Array]:
    """Return the weights for inference, trained once per process."""
    return fit(epochs=2)


@app.task(rts={"req_gpu": 4, "req_cpu": 8})
def train(epochs: int = 60) -> dict[str, Any]:
    """Train the network; the type gpu-training is inferred from the requested resources.

    The accuracy, 0 to 1, is measured on pictures that it was not trained on.
    """
    x, labels = pictures()
    x, labels = x[TRAINING:], labels[TRAINING:]
    _, odds = forward(x, *fit(epochs))
    return {"epochs": epochs, "accuracy": float((odds.argmax(axis=1) == labels).mean())}


@app.task(rts={"task_type": "gpu-inference"})
def classify(rounds: int = 30) -> dict[str, Any]:
    """Classify all pictures *rounds* times (1 or more); the accuracy is 0 to 1."""
    x, labels = pictures()
    weights = trained()
    right = 0
    for _ in range(rounds):
        _, odds = forward(x, *weights)
        right += int((odds.argmax(axis=1) == labels).sum())
    return {"pictures": rounds * len(x), "accuracy": right / (rounds * len(x))}
