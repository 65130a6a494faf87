"""Settings that are right one by one, and cannot work together.

Each function raises ValueError, one sentence with both values and what to change. What depends on
the data (how many prompts there are, ties among rewards) only the stages can know.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from infalign.theory.transforms import parse_transform

Params: TypeAlias = Any  # settings.params.Params, which asks for these checks

BUILT_IN = Path("results/corpus")  # data.path of the corpus that is made here


def check_combinations(params: Params) -> None:
    """Raise for the first combination that cannot work."""
    _distinct_lists(params)
    _scratch_is_trained(params)
    _enough_samples(params)
    _enough_prompts(params)
    _something_to_compare(params)
    _reachable_budgets(params)
    _known_suites(params)
    _servers_somewhere(params)
    _quantised_bases(params)
    if params.align.start == "champion" and params.align.lora_rank is not None:
        raise ValueError(
            f"align.start = champion trains all weights of the champion, and align.lora_rank = "
            f"{params.align.lora_rank} an adapter of the reference: set one of them to "
            "reference or null"
        )
    if params.run.processes % params.run.nodes:
        raise ValueError(
            f"run.processes = {params.run.processes} are all nodes' together, and run.nodes = "
            f"{params.run.nodes} cannot have as many each: make it a multiple of them"
        )
    promoted, run = params.promotion, params.run
    if promoted.after_run and promoted.variant not in run.variants:
        raise ValueError(
            f"promotion.after_run promotes promotion.variant = {promoted.variant!r}, which is not "
            f"in run.variants = {run.variants}: add it there, or name one of them"
        )


def _servers_somewhere(params: Params) -> None:
    """An engine of servers is either started here or found elsewhere."""
    generation = params.generation
    if generation.engine == "builtin":
        return
    if generation.start and generation.urls:
        raise ValueError(
            f"generation.start = true starts servers, and generation.urls names others: "
            f"{generation.urls}: set start to false, or empty urls"
        )
    if not generation.start and not generation.urls:
        raise ValueError(
            f"generation.engine = {generation.engine} asks servers, and generation.urls names "
            "none: name them, or set generation.start to true"
        )


def _quantised_bases(params: Params) -> None:
    """What a base in 4 bits needs, and what does not go with it."""
    for section in ("sft", "reward", "align"):
        bits = getattr(params, section).lora_bits
        if bits is None:
            continue
        field = f"{section}.lora_bits = {bits}"
        if getattr(params, section).lora_rank is None:
            raise ValueError(
                f"{field} quantises the base under an adapter, and {section}.lora_rank = null "
                f"trains all weights: set it to 16, say, or {section}.lora_bits to null"
            )
        if params.run.device == "cpu":
            raise ValueError(f"{field} needs CUDA, and run.device = cpu: set it to null")
        if params.run.sharding == "fsdp2" and params.run.processes > 1:
            raise ValueError(
                f"{field} cannot be dealt out, and run.sharding = fsdp2 deals every weight out: "
                f"set it to ddp, or {section}.lora_bits to null"
            )
    if params.align.lora_bits is None:
        return
    if params.generation.engine != "builtin":
        raise ValueError(
            f"align.lora_bits = {params.align.lora_bits} trains over a quantised base, and the "
            f"servers of generation.engine = {params.generation.engine} draw from the base as it "
            "is: set generation.engine to builtin, or align.lora_bits to null"
        )
    for name in params.run.variants:
        if params.align.variants[name].method == "offline":
            raise ValueError(
                f"align.lora_bits = {params.align.lora_bits} moves the reference's "
                f"log-probabilities, and run.variants names {name!r}, whose method offline learns "
                "from the stored ones: leave it out, or set align.lora_bits to null"
            )


def _known_suites(params: Params) -> None:
    for name, suite in params.promotion.suites.items():
        if name not in params.data.suites:
            raise ValueError(
                f"promotion.suites.{name} is a rule over prompts that data.suites does not name: "
                f"add {name}: FILE there, so that they train nobody"
            )
        if suite.objective not in (None, *params.objectives):
            raise ValueError(
                f"promotion.suites.{name}.objective = {suite.objective!r} is not one of "
                f"{sorted(params.objectives)}"
            )


def _scratch_is_trained(params: Params) -> None:
    if params.model.name_or_path == "tiny" and not params.sft.epochs:
        raise ValueError(
            "sft.epochs = 0 takes model.name_or_path as it is, and `tiny` has random weights: "
            "raise sft.epochs, or name a model"
        )


def _distinct_lists(params: Params) -> None:
    compare = params.compare
    lists: dict[str, Sequence[object]] = {
        "run.objectives": params.run.objectives,
        "run.variants": params.run.variants,
        "calibrate.error_references": params.calibrate.error_references,
        "evaluate.best_of": params.evaluate.best_of,
        "compare.objectives": compare.objectives,
        "compare.variants": compare.variants,
        "compare.kl_nats": compare.kl_nats,
        "compare.seeds": compare.seeds,
        "compare.judges": compare.judges,
        "compare.poison.objectives": compare.poison.objectives,
        "compare.poison.variants": compare.poison.variants,
        "compare.poison.kl_nats": compare.poison.kl_nats,
        "compare.poison.seeds": compare.poison.seeds,
    }
    for field, values in lists.items():
        if len(set(values)) != len(values):
            raise ValueError(f"{field} names an entry twice: {values}: remove one")


def _enough_samples(params: Params) -> None:
    """Responses a prompt."""
    sample, align = params.sample, params.align
    largest = max([*params.evaluate.best_of, *(params.procedure(o).n for o in params.objectives)])
    if largest > sample.test_samples:
        raise ValueError(
            f"evaluate.best_of and objectives need N = {largest} samples a prompt, "
            f"sample.test_samples gives {sample.test_samples}: raise it"
        )
    if align.reference_samples > sample.train_samples:
        raise ValueError(
            f"align.reference_samples = {align.reference_samples} are more than the responses that "
            f"are stored, sample.train_samples = {sample.train_samples}: lower it"
        )
    if align.samples_per_prompt + align.reference_samples < 2:
        raise ValueError(
            f"align.samples_per_prompt = {align.samples_per_prompt} with align.reference_samples = "
            f"{align.reference_samples}: a step compares the responses to a prompt with each other "
            "and needs two at least"
        )
    most = max(params.calibrate.error_references)
    if most > sample.large_samples // 2:
        raise ValueError(
            f"calibrate.error_references goes up to {most}, but sample.large_samples = "
            f"{sample.large_samples} gives {sample.large_samples // 2}, the other half being the "
            f"measure: raise it to {2 * most}, or leave {most} out"
        )


def _enough_prompts(params: Params) -> None:
    """Prompts: no more in a part than in the whole."""
    sample, corpus = params.sample, params.corpus
    pairs = [
        ("align.prompts_per_step", params.align.prompts_per_step, "sample.train_prompts"),
        ("sample.large_prompts", sample.large_prompts, "sample.test_prompts"),
        ("report.examples", params.report.examples, "sample.test_prompts"),
    ]
    there = {
        "sample.train_prompts": sample.train_prompts,
        "sample.test_prompts": sample.test_prompts,
        "corpus.train_prompts": corpus.train_prompts,
        "corpus.test_prompts": corpus.test_prompts,
    }
    paths = {Path(params.data_path(objective)) for objective in params.run.objectives}
    if paths == {BUILT_IN}:
        pairs += [
            ("sample.train_prompts", sample.train_prompts, "corpus.train_prompts"),
            ("sample.test_prompts", sample.test_prompts, "corpus.test_prompts"),
        ]
    for field, asked, whole in pairs:
        if asked > there[whole]:
            raise ValueError(
                f"{field} = {asked} are more than there are, {whole} = {there[whole]}: lower the "
                "one or raise the other"
            )


def _something_to_compare(params: Params) -> None:
    """What `infalign compare` needs of both kinds of variants, and of the judges."""
    compare = params.compare
    for name in compare.poison.objectives:
        if name not in compare.objectives:
            raise ValueError(
                f"compare.poison.objectives names {name!r}, which compare.objectives does not: add "
                "it there, or leave it out"
            )
        if params.objectives[name].reward.kind != "train":
            raise ValueError(
                f"compare.poison.objectives names {name!r}, whose reward is not trained here, so "
                "that it cannot learn from poisoned pairs: leave it out"
            )
    blind = [params.is_blind(name) for name in compare.variants]
    if all(blind) or not any(blind):
        raise ValueError(
            "compare.variants needs both kinds: one that knows the procedure (`ctrl`) and one "
            f"that does not (`identity`, `rlhf`, `ipo`, …), found {compare.variants}"
        )


def _reachable_budgets(params: Params) -> None:
    """KL budgets that no policy can spend on what a variant maximises."""
    for objective, variant, field, budget in _budgets(params):
        spelling = params.reward_spelling(objective, variant)
        if spelling in ("optimal", "auto"):  # made for a budget
            continue
        if spelling == "raw":
            most = math.log(params.sample.train_samples)
            why = f"raw rewards of sample.train_samples = {params.sample.train_samples} responses"
        else:
            most, why = parse_transform(spelling).reachable_kl_nats, spelling
        if budget >= most:
            raise ValueError(
                f"{field} = {budget:g} is more than {variant!r} can spend on {objective!r}: {why} "
                f"reach {most:.4g} nats; choose a smaller budget"
            )


def _budgets(params: Params) -> Iterator[tuple[str, str, str, float]]:
    """Everything that is trained at a budget: objective, variant, field, nats a response."""
    compare = params.compare
    plans = (
        (params.run.objectives, params.run.variants, "align.kl_nats", [params.align.kl_nats]),
        (compare.objectives, compare.variants, "compare.kl_nats", compare.kl_nats),
        (
            compare.poison.objectives,
            compare.poison.variants,
            "compare.poison.kl_nats",
            compare.poison.kl_nats,
        ),
    )
    for objectives, variants, field, budgets in plans:
        for objective in objectives:
            for variant in variants:
                yield from ((objective, variant, field, budget) for budget in budgets)
