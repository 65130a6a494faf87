"""Rewards of few levels, where most of a prompt's samples tie: which limits hold for them.

A policy that chooses among tied responses gains nothing, so that less can be won than continuous
theory allows, and only so much KL can be spent on it at all.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from infalign.theory.checks import MIN_KL_NATS, FloatArray
from infalign.theory.frontier import limit
from infalign.theory.limits import tied_limit
from infalign.theory.procedures import Procedure, parse_procedure

FEW_LEVELS = 0.5  # share of samples that tie, above which every tie is taken as real
MANY_ALIKE = 0.25  # share of the prompts whose samples all have one reward that is worth a word
POINTS = 25  # KLs at which the limit is solved; straight lines between


def tied_share(rewards: FloatArray) -> float:
    """Share of samples whose reward another of the prompt's has; rewards [prompts, samples]."""
    ordered = np.sort(rewards, axis=1)
    same = ordered[:, 1:] == ordered[:, :-1]
    edge = np.zeros((len(rewards), 1), dtype=bool)
    return float((np.hstack([edge, same]) | np.hstack([same, edge])).mean())


def has_few_levels(rewards: FloatArray) -> bool:
    """Whether ties are what the reward is like, and not a response that was drawn twice."""
    return tied_share(rewards) > FEW_LEVELS


def limit_of(procedure: Procedure, rewards: FloatArray) -> Callable[[Any], Any]:
    """The best win rate at a KL, nats, or many: of continuous rewards, or with their ties.

    Args:
        rewards: the reference's, [prompts, samples].
    """
    one = parse_procedure("standard") if procedure.n == 1 else procedure  # solved once
    if not has_few_levels(rewards):
        return partial(limit, one)
    most = spendable(rewards)
    if most < MIN_KL_NATS:
        return lambda kl: np.full(np.shape(kl), 0.5)
    kls = most * np.linspace(0.0, 1.0 - 1e-6, POINTS) ** 2
    found = [
        0.5,
        *(tied_limit(one, "optimal", rewards, kl, ties="half").win_rate for kl in kls[1:]),
    ]
    curve = np.maximum.accumulate(found)  # past the top a policy only spends
    return lambda kl: np.interp(kl, kls, curve)


def spendable(rewards: FloatArray) -> float:
    """The KL, nats, of a policy that gives the best level of every prompt and nothing else."""
    best = (rewards == rewards.max(axis=1, keepdims=True)).mean(axis=1)
    return float(np.log(1.0 / best).mean())
