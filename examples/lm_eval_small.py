"""Score a model that a node serves with lm-evaluation-harness (`local-completions`), on a small task of one's own.

    pip install 'lm-eval[api]'                     # in any environment: it needs neither nearfar nor torch
    nearfar up --model ./model.gguf
    python examples/lm_eval_small.py --model NAME [--base-url http://127.0.0.1:8080/v1] [--questions FILE.jsonl]

Multiple choice by log-likelihood: each choice is scored as the continuation of its question, by the field `echo` of
`/v1/completions`; the harness computes `acc`. A question is a line of JSON: {"question", "choices", "answer": INDEX};
without a file, eight easy ones are asked. The harness cuts texts at tokens, so it needs the model's own tokenizer: this
script asks the node for it (`echo` with `max_tokens` 0), where the harness would load one from a hub.
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

QUESTIONS = [
    ("The colour of grass is", [" green", " loud", " seven", " asleep"], 0),
    ("Two and two make", [" yellow", " four", " under", " Monday"], 1),
    ("Birds can", [" rust", " invoice", " fly", " quarter"], 2),
    ("At night it is", [" oblong", " divided", " sung", " dark"], 3),
    ("The opposite of hot is", [" cold", " of", " ran", " spoon"], 0),
    ("Once upon a", [" ladder", " time", " of", " eats"], 1),
    ("A cat says", [" brick", " tax", " meow", " north"], 2),
    ("She went to the", [" are", " an", " quickly", " park"], 3),
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--base-url", default="http://127.0.0.1:8080/v1")
    parser.add_argument("--questions", type=Path)
    given = parser.parse_args()
    os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import requests
        from lm_eval import simple_evaluate
        from lm_eval.models.openai_completions import LocalCompletionsAPI
    except ImportError as error:
        print(f"lm-evaluation-harness is not installed ({error}). Type: pip install 'lm-eval[api]'", file=sys.stderr)
        return 3
    url = given.base_url.rstrip("/") + "/completions"

    class Served(LocalCompletionsAPI):  # type: ignore[misc]
        """`local-completions` whose tokenizer is the served model's own."""

        def __init__(self) -> None:
            super().__init__(base_url=url, model=given.model, tokenizer_backend=None, max_length=4096)
            self.tokenized_requests = True
            self.tokenizer = self  # the harness only asks whether there is one

        @property
        def eot_token_id(self) -> int:
            return 2

        @property
        def prefix_token_id(self) -> int:
            return 1

        def tok_encode(self, string: Any, *_: Any, **__: Any) -> Any:
            texts = [string] if isinstance(string, str) else list(string)
            body = {"model": given.model, "prompt": texts, "echo": True, "max_tokens": 0}
            answer = requests.post(url, json=body, headers=self.header, timeout=60)
            answer.raise_for_status()
            found = [choice["prompt_token_ids"] for choice in answer.json()["choices"]]
            return found[0] if isinstance(string, str) else found

    with tempfile.TemporaryDirectory() as folder:
        file = given.questions or Path(folder) / "questions.jsonl"
        if given.questions is None:
            rows = [
                {"question": question, "choices": choices, "answer": right} for question, choices, right in QUESTIONS
            ]
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        task = {
            "task": "small",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(file)}},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{answer}}",
            "target_delimiter": "",
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        }
        found = simple_evaluate(model=Served(), tasks=[task], bootstrap_iters=0)
    result = found["results"]["small"]
    print(
        json.dumps(
            {"model": given.model, "questions": found["n-samples"]["small"]["effective"], "acc": result["acc,none"]}
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
