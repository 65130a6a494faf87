"""InfAlign's mathematics by itself: what is possible, exactly, in numpy and scipy.

Balashankar, Sun, Berant et al., InfAlign: Inference-aware language model alignment,
ICML 2025 (arXiv 2412.19792).  One file per family of formulas:

    procedures    best-of-N and its relatives: the polynomial G, its slope, selection
    transforms    Phi of the calibrated reward: families, tables, estimates
    frontier      win rate, KL and beta of every combination; the limit of all policies
    limits        the limit of one method, from reference samples
    levels        what can be won where most samples tie: an estimate
    calibration   calibrated rewards and their error
    winrates      exact win rates from samples, bootstrap intervals, efficiency
    rivals        two systems against each other, exact, with draws in common
    looks         a lower bound that many looks do not wear out
    planning      how many references, prompts and samples a wanted precision costs

Underneath: `optimum` (the optimal transformation), `tilting` (densities at a KL),
`quadrature` (integration), `checks` (bad input).  Imports nothing else of this project.
"""

from infalign.theory.calibration import (
    calibrate,
    calibrate_below,
    calibration_error,
    expected_calibration_error,
)
from infalign.theory.frontier import (
    FrontierPoint,
    frontier_point,
    limit,
    log_partition,
    solve_beta,
)
from infalign.theory.limits import MethodLimit, raw_beta, raw_limit, tied_limit
from infalign.theory.looks import look_level, lower_bound
from infalign.theory.planning import (
    expected_disagreement,
    interval_width,
    prompts_needed,
    references_needed,
    samples_needed,
    win_rate_noise,
    win_rate_with_references,
)
from infalign.theory.procedures import Procedure, parse_procedure
from infalign.theory.rivals import head_to_head, kept_mean
from infalign.theory.transforms import Transform, parse_transform
from infalign.theory.winrates import (
    bootstrap_interval,
    bootstrap_intervals,
    efficiency,
    judged_win_rates,
    judged_win_rates_under,
    kl_estimate,
    win_rates,
    win_rates_under,
)

__all__ = [
    "FrontierPoint",
    "MethodLimit",
    "Procedure",
    "Transform",
    "bootstrap_interval",
    "bootstrap_intervals",
    "calibrate",
    "calibrate_below",
    "calibration_error",
    "efficiency",
    "expected_calibration_error",
    "expected_disagreement",
    "frontier_point",
    "head_to_head",
    "interval_width",
    "judged_win_rates",
    "judged_win_rates_under",
    "kept_mean",
    "kl_estimate",
    "limit",
    "log_partition",
    "look_level",
    "lower_bound",
    "parse_procedure",
    "parse_transform",
    "prompts_needed",
    "raw_beta",
    "raw_limit",
    "references_needed",
    "samples_needed",
    "solve_beta",
    "tied_limit",
    "win_rate_noise",
    "win_rate_with_references",
    "win_rates",
    "win_rates_under",
]
