"""corpus: the built-in preference data, generated from a seed, as Anthropic-HH files.

Reads nothing. Writes results/corpus/{helpful-base,harmless-base}/{train,test}.jsonl.gz and
corpus.json, which says what they are: generator, seed, counts, the best accuracy that a reward
model can reach on them, and that a gold utility exists.
"""

from __future__ import annotations

from infalign.data.builtin import GENERATOR, SUBSETS, Corpus, make_corpus
from infalign.data.hh import write_pairs
from infalign.data.pairs import SPLITS
from infalign.files.workspace import Needs, Workspace, write_json
from infalign.settings.params import Params


def needs(params: Params) -> Needs:
    """What the stage depends on."""
    return Needs(inputs=(), params=("corpus",), outputs=("results/corpus",))


def run(workspace: Workspace) -> None:
    """Generate and write both subsets."""
    settings = workspace.params.corpus
    out = workspace.out / "corpus"
    subsets = {}
    for name in SUBSETS:
        corpus = make_corpus(
            name,
            settings.seed,
            settings.train_prompts,
            settings.test_prompts,
            settings.pairs_per_prompt,
        )
        for split in SPLITS:
            write_pairs(out / name / f"{split}.jsonl.gz", getattr(corpus, split))
        subsets[name] = _summary(corpus)
    about = {"generator": GENERATOR, "gold": "builtin", "seed": settings.seed, "subsets": subsets}
    write_json(out / "corpus.json", about)


def _summary(corpus: Corpus) -> dict[str, dict[str, float]]:
    """Counts and the accuracy ceiling, by split."""
    return {
        split: {
            "pairs": len(getattr(corpus, split)),
            "prompts": len({pair.prompt for pair in getattr(corpus, split)}),
            "accuracy_ceiling": corpus.ceiling[split],
        }
        for split in SPLITS
    }
