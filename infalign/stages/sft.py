"""sft: the reference policy, trained on the responses of both sides of every preference pair.

Reads results/prepare. Writes results/sft/{policy/, history.jsonl, metrics.json}; the policy is a
plain Hugging Face folder, with sft.lora_rank beside the adapter/ that is merged into it. The loss
covers response tokens and EOS only; responses longer than model.response_tokens are cut, without
EOS.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from transformers import PreTrainedModel

from infalign.data.dialogue import Dialogue
from infalign.errors import InputError
from infalign.files.history import read_history
from infalign.files.tables import PREFERENCES, PROMPTS, read_table
from infalign.files.weights import check_source, folders
from infalign.files.workspace import Needs, Workspace, write_json, write_text
from infalign.lm.formats import Format
from infalign.lm.memory import Block, Budget, autocast, in_pieces
from infalign.lm.models import (
    build_tiny,
    load_format,
    load_policy,
    pick_device,
    precision_on,
    save_model,
)
from infalign.lm.sampling.randomness import derive_seed
from infalign.lm.sampling.sampler import Responses, sample_responses
from infalign.lm.sampling.ways import proven_way
from infalign.lm.scoring.scorer import token_log_probs
from infalign.lm.text import TokenPairs, by_length
from infalign.lm.training.loop import EpochBatches, Schedule, Step, optimise
from infalign.lm.training.lora import plain, save_adapter, with_adapter
from infalign.lm.training.losses import likelihood_loss
from infalign.lm.training.parallel import Part, Trainable, microbatched
from infalign.lm.training.quantising import check_quantising
from infalign.processes.ranks import Ranks
from infalign.settings.params import TRAINING, Params

ENDING_PROMPTS = 256  # held-out prompts that are answered to see whether responses end, at most
RISING_STEPS, RISING = 10, 1.2  # a loss that is so many times the first one within so many steps
MOSTLY = 0.5  # of sampled responses


def needs(params: Params) -> Needs:
    """What the stage depends on."""
    return Needs(
        inputs=("results/prepare", *folders(params.model)),
        params=(*TRAINING, "model", "sft"),
        outputs=("results/sft",),
    )


def run(workspace: Workspace) -> None:
    """Train the reference policy, or take the given model, and measure it on held-out responses."""
    params = workspace.params
    check_source("model", params.model, workspace.root)
    device = pick_device(params.run.device)
    check_quantising(params, device)
    form = load_format(workspace.results("prepare", "tokenizer"))

    rank = params.sft.lora_rank if params.sft.epochs else None

    precision = precision_on(params.run.precision, device)

    def given_model(device: torch.device) -> PreTrainedModel:
        return _build(workspace, form, device, precision)

    def build(device: torch.device) -> PreTrainedModel:
        if not rank:
            return given_model(device)
        seed = derive_seed(params.run.seed, "sft", "lora")
        return with_adapter(given_model, device, params.sft, seed, "sft")

    data = read_pairs(workspace, form, "train")
    held_out = read_pairs(workspace, form, "test", params.sft.held_out_pairs)
    model = Trainable(build, params.run)
    budget, longest = Budget(params.run.batch_tokens), workspace.lengths.response
    # Nothing is trained that could not be sampled from.
    proven_way(model.whole(), _longest_prompt(workspace, form), longest, budget)
    given = None
    if params.model.name_or_path != "tiny" and params.sft.epochs and held_out.lengths.size:
        given = _perplexity(model.whole(), held_out, params, model.ranks)
    if params.sft.epochs:
        _train(workspace, model, data, form)
    policy, out = model.plain(), workspace.out / "sft"
    if rank:
        if model.ranks.main and params.model.name_or_path != "tiny":  # which nobody else has
            save_adapter(policy, out / "adapter", params.model.name_or_path)
        policy = plain(policy, lambda: given_model(torch.device("cpu")))
    metrics = _measured(workspace, policy, form, held_out, model.ranks)
    if not model.ranks.main:
        return
    if given is not None:
        metrics["given_perplexity"] = given
    _tell(workspace, metrics)
    ends = list(form.ends)  # so that whoever generates with it stops where it ends a turn
    policy.generation_config.eos_token_id = ends if len(ends) > 1 else ends[0]
    save_model(policy, form.tokenizer, out / "policy")
    write_text(out / "history.jsonl", _history(workspace))
    metrics["parameters"] = sum(p.numel() for p in policy.parameters())
    metrics["responses"] = 2 * len(data.lengths) if params.sft.epochs else 0
    write_json(out / "metrics.json", metrics)


def _train(workspace: Workspace, model: Trainable, data: TokenPairs, form: Format) -> None:
    params = workspace.params
    if not data.lengths.size:
        raise InputError(
            f"sft.epochs = {params.sft.epochs:g}, but no objective has pairs to learn from: set it "
            "to 0, which takes model.name_or_path as it is."
        )
    device = model.model.device
    size = max(1, params.sft.batch_size // 2)  # a pair's two responses share their prompt
    batches = EpochBatches(data.lengths, size, derive_seed(params.run.seed, "sft"))
    schedule = Schedule(
        max(1, round(params.sft.epochs * len(data.lengths) / size)),
        params.sft.learning_rate,
        params.sft.warmup_share,
        params.sft.weight_decay,
    )

    def loss(part: Part) -> torch.Tensor:
        return likelihood_loss(model(token_log_probs, data.batch(part.rows, device)))

    def take(number: int) -> Step:
        rows = batches.at(number)
        parts = model.parts(rows, 2 * data.lengths[rows], data.tokens[rows])
        whole, more = microbatched(parts, loss)
        return Step(whole, {}, int(data.tokens[rows].sum()), more)

    bounds = {"loss": 2 * math.log(len(form.tokenizer))}  # a uniform guess has half of it
    optimise(
        model,
        schedule,
        take,
        workspace.work,
        name=workspace.instance,
        bounds=bounds,
        optimizer=params.sft.optimizer,
    )


def _history(workspace: Workspace) -> str:
    """The training's history; of no training, nothing."""
    path = workspace.work / "history.jsonl"
    return path.read_text(encoding="utf-8") if workspace.params.sft.epochs else ""


def _measured(
    workspace: Workspace, policy: PreTrainedModel, form: Format, held_out: TokenPairs, ranks: Ranks
) -> dict[str, float | None]:
    """Perplexity of held-out responses, and how sampled ones are."""
    perplexity = None
    if held_out.lengths.size:
        perplexity = _perplexity(policy, held_out, workspace.params, ranks)
    sampled = _samples(workspace, policy, form, ranks)
    return {
        "held_out_perplexity": perplexity,
        "ended_share": float(sampled.finished.mean()),
        "empty_share": float(np.mean([not text for text in sampled.text])),
    }


def _tell(workspace: Workspace, metrics: dict[str, float | None]) -> None:
    """Say what makes a reference that nobody wants to align."""
    settings, told = workspace.params.sft, []
    now, given = metrics["held_out_perplexity"], metrics.get("given_perplexity")
    losses = [row["loss"] for row in read_history(workspace.work / "history.jsonl")]
    if losses and max(losses[:RISING_STEPS]) > RISING * losses[0]:
        told.append(
            f"the loss rose from {losses[0]:.3g} to {max(losses[:RISING_STEPS]):.3g} in the first "
            f"steps: lower sft.learning_rate = {settings.learning_rate:g}"
        )
    if now is not None and given is not None and now > given * (1 + 1e-6):
        told.append(
            f"held-out perplexity is {now:.4g}, and was {given:.4g} before training: lower "
            f"sft.learning_rate = {settings.learning_rate:g}, or set sft.epochs to 0"
        )
    empty = metrics["empty_share"] or 0.0
    if empty > MOSTLY:
        told.append(f"{empty:.0%} of the sampled responses are empty")
    for words in told:
        print(f"{workspace.instance}: {words}.", flush=True)


def _build(
    workspace: Workspace, form: Format, device: torch.device, precision: str
) -> PreTrainedModel:
    """The model that training starts from.

    Rows of its embedding that no token has, padding of the vocabulary, are cut off: sampling could
    draw them.
    """
    params = workspace.params
    if params.model.name_or_path != "tiny":
        name, revision = params.model.name_or_path, params.model.revision
        model = load_policy(name, device, precision, revision)
        if form.rows < len(model.get_input_embeddings().weight):
            model.resize_token_embeddings(form.rows)
        return model
    positions = sum(workspace.lengths)
    return build_tiny(
        params.model.tiny, form.tokenizer, positions, device, params.run.seed, precision
    )


def read_pairs(
    workspace: Workspace, form: Format, split: str, most: int | None = None
) -> TokenPairs:
    """Both responses of the pairs of a split, cut at the longest length.

    Args:
        most: of the pairs, in the order of their ids where there are more.
    """
    prompts = read_table(workspace.results("prepare", "prompts.parquet"), PROMPTS)
    pairs = read_table(workspace.results("prepare", "preferences.parquet"), PREFERENCES)
    dialogues = [Dialogue.parse(text) for text in prompts["dialogue"].to_pylist()]
    keys = zip(prompts["objective"].to_pylist(), prompts["prompt_id"].to_pylist(), strict=True)
    ids = dict(zip(keys, form.encode_prompts(dialogues), strict=True))
    rows = [row for row in pairs.to_pylist() if row["split"] == split]
    if most is not None and len(rows) > most:
        rows = sorted(rows, key=lambda row: row["pair_id"])[:most]
    longest = workspace.lengths.response
    chosen, rejected = (
        form.encode_responses([row[side] for row in rows], longest)
        for side in ("chosen", "rejected")
    )
    asked = [ids[row["objective"], row["prompt_id"]] for row in rows]
    return TokenPairs(asked, chosen, rejected, form.pad)


@torch.inference_mode()
def _perplexity(policy: PreTrainedModel, data: TokenPairs, params: Params, ranks: Ranks) -> float:
    """exp of the mean negative log-likelihood of held-out response tokens."""
    budget = Budget(params.run.batch_tokens)

    def measure(block: Block) -> tuple[float, int]:
        with autocast(policy):
            batch = data.batch(block.prompts, policy.device, block.columns)
            logp = token_log_probs(policy, batch)
        return float(logp.double().sum()), len(logp)

    def width(block: Block) -> int:
        responses = (data.responses[row][side] for row in block.prompts for side in block.columns)
        return max(len(data.prompts[row]) for row in block.prompts) + max(map(len, responses))

    total, count = 0.0, 0
    for chosen in ranks.share(by_length(data.lengths.tolist(), 4 * params.sft.batch_size)):
        pairs = Block(chosen, np.arange(2))
        for _, (logp, tokens) in in_pieces(pairs, measure, width, budget):
            total, count = total - logp, count + tokens
    whole = ranks.total(np.array([total, count]))
    return math.exp(whole[0] / whole[1])


def _longest_prompt(workspace: Workspace, form: Format) -> list[int]:
    table = read_table(workspace.results("prepare", "prompts.parquet"), PROMPTS)
    dialogues = [Dialogue.parse(text) for text in table["dialogue"].to_pylist()]
    return max(form.encode_prompts(dialogues), key=len)


def _samples(
    workspace: Workspace, policy: PreTrainedModel, form: Format, ranks: Ranks
) -> Responses:
    """A response to each of some held-out prompts."""
    prompts = read_table(workspace.results("prepare", "prompts.parquet"), PROMPTS)
    rows = [row for row in prompts.to_pylist() if row["split"] == "test"]
    most = min(ENDING_PROMPTS, workspace.params.sft.held_out_pairs)
    rows = sorted(rows, key=lambda row: (row["prompt_id"], row["objective"]))[:most]
    return sample_responses(
        policy,
        form,
        [Dialogue.parse(row["dialogue"]) for row in rows],
        [row["prompt_id"] for row in rows],
        np.zeros((len(rows), 1), dtype=np.int64),
        seed=derive_seed(workspace.params.run.seed, "sft", "ended"),
        longest=workspace.lengths.response,
        batch_size=len(rows),
        budget=Budget(workspace.params.run.batch_tokens),
        ranks=ranks,
    )
