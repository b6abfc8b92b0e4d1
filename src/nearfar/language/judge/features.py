"""What the judge looks at: one number for each name, NaN where there is nothing to go by.

A feature is NaN, never a made-up number, when its evidence is missing: no log-probabilities, a single sample, no
arithmetic. What the model makes of that is written in `model.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from nearfar.language.answer import Answer
from nearfar.language.judge import certainty, figures, wording
from nearfar.language.judge.arithmetic import claims
from nearfar.language.judge.final import agreement, final_answer
from nearfar.language.judge.formats import Form, format_features, forms
from nearfar.language.prompt import Asked

GROUPS: Mapping[str, tuple[str, ...]] = {
    "certainty": ("mean_logprob", "min_logprob", "doubtful_share", "entropy"),
    "samples": ("agreement",),
    "arithmetic": figures.ARITHMETIC,
    "numbers": figures.NUMBERS,
    "shape": ("words", "lines", "says_final", "ends_in_number"),
    "repetition": ("repeated_share", "loop_share"),
    "refusal": ("refuses", "unknowing", "hedges"),
    "truncation": ("cut_by_length", "ends_open"),
    "language": ("other_language",),
    "overlap": ("echo_share", "covered_share"),
    "format": ("form_kept",),
    "prompt": ("prompt_words", "prompt_numbers", "ratios", "questions", "comparisons", "backwards"),
}
"""Names of the features by what they look at; `docs/explanation-cascade.md` says what each is."""
NAMES: tuple[str, ...] = tuple(name for names in GROUPS.values() for name in names)
GROUP_OF: Mapping[str, str] = {name: group for group, names in GROUPS.items() for name in names}


def observe(
    asked: Asked, answer: Answer, others: Sequence[str] = (), found: Sequence[Form] | None = None
) -> dict[str, float]:
    """Every feature of `NAMES`. `others` are further samples of the same near model to the same prompt.

    Sees the prompt and what the near model said, nothing else. About 1 ms for an answer of 1,000 characters.
    """
    text = answer.text
    told, final = claims(text), final_answer(text)
    values = {
        **certainty.certainty(answer.chances),
        "agreement": agreement([text, *others]),
        **figures.arithmetic(asked.prompt, told),
        **figures.plausibility(asked.prompt, text, final, told),
        "words": math.log1p(len(text.split())),
        "lines": math.log1p(sum(bool(line.strip()) for line in text.splitlines())),
        "says_final": float(final.marked),
        "ends_in_number": float(final.kind == "number"),
        **wording.repetition(text),
        **wording.refusal(text),
        **wording.truncation(text, answer.finish_reason),
        **wording.language(asked.prompt, text),
        **wording.overlap(asked.prompt, text),
        **format_features(tuple(forms(asked, answer) if found is None else found)),
        **figures.demand(asked.prompt),
    }
    return {name: values[name] for name in NAMES}
