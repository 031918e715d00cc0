"""The model card: what was learned from what, with which result, and how to load it; nothing that is not so."""

import re

from tuner import __version__, blind, figures, licences, provenance, tasks
from tuner.errors import UserError
from tuner.recipe import HUB_ID

_TEMPLATE = """---
{{ card_data }}
---

# {{ title }}

A LoRA adapter for [{{ base }}](https://huggingface.co/{{ base }}), tuned with QLoRA in Tuner.
{{ about }}

## What it learned

- Trained on: {{ trained_on }}.
- Dataset: {{ dataset }}. {{ receipt.rows_in }} rows came in, {{ receipt.train_rows }} were trained on and \
{{ receipt.held_out_rows }} held out ({{ receipt.split }}). SHA-256 of what came out: `{{ receipt.sha256 }}`
{%- for step in receipt.steps %}
  - {{ step.step }}: {{ step.rows }} rows
{%- endfor %}
- Learned part: {{ learned }}.

{{ before_and_after }}
{% if blind %}
## Blind test

{{ blind }} The author voted without knowing which answer was whose.
{% endif %}
## Load it

```python
{{ load_it }}
```

Or talk to it in the browser: {{ share_link }}

{{ provenance }}
"""


def record(run) -> dict:
    """What the repository keeps about the run besides the card, for machines."""
    plan, base = run.read("plan"), run.read("base")
    return {
        "made_with": f"tuner {__version__}", "base_model": base["id"], "base_revision": base["revision"],
        "base_sha256": plan["base_sha256"], "base_what": base["what"], "precision": plan["precision"],
        "quantisation": run.recipe.quantisation, "dequantised": plan["dequantised"], "attention": plan["attention"],
        "kept_16bit": plan["kept_16bit"], "system_prompt": run.recipe.system_prompt,
        "template_date": run.recipe.template_date, "keep_control_tokens": run.recipe.keep_control_tokens,
        **tasks.get(run.recipe.task).record(plan),
    }


def build(run, repo_id: str, share_link: str) -> str:
    """The README of a finished run's repository.

    `base_model`, `license` and `datasets` are named only as they really are: the licence is the base's own, a dataset
    only where it is a Hub dataset.

    Raises:
        UserError: the run's report is of an older form.
    """
    from huggingface_hub import ModelCard, ModelCardData

    base, plan, report = run.read("base"), run.read("plan"), figures.of(run)
    if not report:
        raise UserError(f"This run's report is missing or of an older form. Make it again: python -m tuner report {run.id}")
    receipt, task = run.read("data/receipt"), tasks.get(run.recipe.task)
    hub_dataset = receipt["source"].get("hub_id", "")
    hub_dataset = hub_dataset if HUB_ID.fullmatch(hub_dataset) else ""
    title = _plain(run.title)
    kind = {"paste": "pasted rows, not published", "file": "an uploaded file, not published"}
    if demo := tasks.demos().get(provenance.demo_of(receipt), ""):
        kind["demo"] = f"Tuner's own “{demo.removesuffix(' (demo)')}”"
    data = ModelCardData(
        base_model=base["id"], base_model_relation="adapter", library_name="peft", pipeline_tag=task.PIPELINE,
        datasets=[hub_dataset] if hub_dataset else None,
        tags=["lora", "qlora", "transformers", *task.TAGS, f"base_model:adapter:{base['id']}", "tuner"],
        model_name=title,
        eval_results=_results(task, report, hub_dataset),
        **licences.metadata(base),
    )
    return str(
        ModelCard.from_template(
            data, template_str=_TEMPLATE, title=title, base=base["id"], repo_id=repo_id, share_link=share_link,
            about=_plain(run.recipe.about), trained_on=base["what"],
            dataset=f"[{hub_dataset}](https://huggingface.co/datasets/{hub_dataset})" if hub_dataset
            else kind.get(receipt["source"].get("kind"), "rows of the author's own, not published"),
            receipt=receipt, before_and_after=task.before_and_after(run, report), load_it=task.load_it(repo_id, base["id"], plan),
            blind=blind.words(blind.tally(run)) if blind.is_in_card(run) else "", learned=task.learned_part(run.recipe),
            provenance=provenance.sections(run),
        )
    )


def _results(task, report: dict, hub_dataset: str) -> list:
    """The tuned model's figures for the card's model-index, the same that the table shows; shares from 0 to 1."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type=task.PIPELINE, dataset_type="tuner-probe" if its["general"] else hub_dataset or "private",
            dataset_name="Tuner's forgetting probe" if its["general"] else "held-out rows", metric_type=its["metric"],
            metric_value=round(its["tuned"], 4), metric_name=its["name"] + (f" (nats a {its.get('per', 'token')})" if its["unit"] == "nats" else ""),
        )
        for its in task.measures(report)
    ]


def _plain(text: str) -> str:
    """Text that Markdown and YAML take as text: one line, without what opens a tag, a link or a template."""
    return re.sub(r"[\[\]<>{}`|#]", "", " ".join(str(text).split()))[:200]
