"""Numbers as the page writes them, and the page's fixed texts."""

from __future__ import annotations

from collections.abc import Sequence

from infalign.files.names import GOLD, INDEPENDENT, SELECTING

MISSING = "–"

JUDGES = {
    SELECTING: "selecting reward",
    INDEPENDENT: "independent judge",
    GOLD: "gold utility",
}


def decimal(value: float | None, digits: int = 2) -> str:
    """A number with a true minus sign, or a dash where it is undefined."""
    if value is None:
        return MISSING
    text = f"{value:.{digits}f}"
    return text.replace("-", "−") if float(text) else text.lstrip("-")


def percent(value: float | None, digits: int = 1) -> str:
    """A share as a percentage, without the sign."""
    return MISSING if value is None else decimal(100 * value, digits)


def percent_range(low: float | None, high: float | None) -> str:
    """An interval of shares, as percentages."""
    if low is None or high is None:
        return ""
    return f"[{percent(low)}, {percent(high)}]"


def points(value: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    text = percent(value)
    return text if text.startswith("−") or not float(text) else f"+{text}"


def points_range(low: float, high: float) -> str:
    """An interval of differences, in percentage points."""
    return f"[{points(low)}, {points(high)}]"


def listed(parts: Sequence[str]) -> str:
    """Words in a sentence: a, b and c."""
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last


def procedure_words(spelling: str) -> str:
    """`best_of:4` as Best-of-4; other spellings as they are."""
    kind, _, n = spelling.partition(":")
    names = {"best_of": "Best-of-", "worst_of": "Worst-of-"}
    if kind in names:
        return names[kind] + n
    return "Standard sampling" if spelling == "standard" else spelling


READING = (
    "Every policy is compared with the reference, the model that all of them started from, on "
    "prompts that neither was trained on here. Both sides use the same procedure, for instance "
    "draw four responses and keep the one that the selecting reward likes best; the win rate is "
    "how often the policy’s kept response beats the reference’s, ties counting half. 50 % means "
    "no change.",
    "A policy can always win more by moving further from the reference, so a win rate says "
    "little without its KL. Two numbers make policies comparable: the limit, which no policy "
    "with the same KL can exceed, and the efficiency, the share of the way from 50 % to the "
    "limit that the policy went. The method’s limit is what a perfect optimiser would reach "
    "with that method’s own reward. A policy far below its method’s limit was trained badly; a "
    "method far below the limit aims at the wrong thing. A policy may lie a little above its "
    "method’s limit: by chance, or because it is not the optimum of its own reward and closer to "
    "that of the win rate.",
    "Brackets are 95 % intervals from resampling prompts; ± is one standard error. A difference "
    "between two policies is computed prompt by prompt, so its interval is narrower than the "
    "two policies’ own intervals suggest: read it from the table of differences.",
    "The procedure always selects by the selecting reward, as it would when deployed. The win "
    "rate judged by the same reward is what training optimised; an independent judge and the "
    "gold utility, where there are such, tell how much of it is real. A win rate that is high "
    "for the selecting reward and low for the others is reward hacking. The limits hold for the "
    "selecting reward; under another judge they are a yardstick only.",
)

GLOSSARY = (
    (
        "Reference",
        "The policy that alignment starts from and is compared with: the supervised model, or a "
        "given model as it is.",
    ),
    ("Policy", "A model that answers prompts; here one for each variant of alignment."),
    (
        "Procedure",
        "What happens at inference: standard sampling takes one response, Best-of-N keeps the one "
        "of N with the highest reward, Worst-of-N the one with the lowest, as an attacker would "
        "who tries N times.",
    ),
    ("Win rate", "How often the policy’s kept response beats the reference’s; ties count half."),
    (
        "Calibrated reward, C",
        "The share of the reference’s responses to the same prompt that a response beats. If few "
        "tie, it is uniform between 0 and 1 for the reference itself, whatever the reward’s scale.",
    ),
    (
        "Transformation, Φ",
        "An increasing function of C, chosen for the procedure, that training maximises: exp:10 "
        "is exp(10·C), exp:-10 is −exp(−10·C), identity is C itself; raw is the reward as scored.",
    ),
    (
        "KL",
        "How far a policy is from the reference, in nats a response: the expected sum, over the "
        "response’s tokens, of the divergence between the two next-token distributions.",
    ),
    (
        "Limit",
        "The highest win rate that any policy can have at a given KL under a given procedure.",
    ),
    (
        "Method’s limit",
        "The win rate of a variant’s exact optimum at the same KL. It bounds nobody: a policy that "
        "is not that optimum may lie above it.",
    ),
    (
        "Efficiency",
        "(win rate − 50 %) / (limit − 50 %), at the policy’s own measured KL; of a reward of few "
        "levels, by the estimate with ties.",
    ),
    (
        "Gate",
        "The rules by which a policy replaces the one that is deployed (`promotion` in "
        "params.yaml). `infalign promote` asks all of them; this page those that need nothing but "
        "the results.",
    ),
    (
        "Selecting reward",
        "What training maximised and the procedure selects by: a reward model, a function, a "
        "server, or a sum of such.",
    ),
    (
        "Independent judge",
        "Another source of rewards, which only compares; one that is trained here learns from the "
        "other half of the preference pairs, with another seed.",
    ),
    (
        "Gold utility",
        "The true quality of a response, known only for the built-in corpus, whose preference "
        "labels were drawn from it.",
    ),
    ("Cut", "A response that reached the longest allowed length before it ended by itself."),
)
