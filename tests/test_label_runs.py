"""Tests of classifiers on tiny random bases of each kind: what is trained, what is kept, what comes back; runs from start to report."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.small import base_entry, small_base, small_encoder
from tests.small_run import adapter_hash, die_after, events, losses, notes
from tuner import card, chat, cost, data, homecoming, labelling, models, outgoing, probe, report, sizes, tasks, train, verify
from tuner import run as runs
from tuner.errors import UserError
from tuner.home import read_json, write_json
from tuner.recipe import Recipe
from tuner.tasks import distillation, label_card, label_learning, label_model, label_report

ENCODERS = ("bert", "roberta", "deberta-v2", "modernbert")
FAMILIES = (*ENCODERS, "llama", "qwen2")
TASK = tasks.get("text_labels")
ANIMALS = "cat dog ball mat bird fish goat hen".split()
ROWS = [{"text": f"The {ANIMALS[n % 8]} sat on the {ANIMALS[n * 3 % 8]} and mat {n}", "label": ANIMALS[n % 8 // 2 * 2], "n": n + 1} for n in range(32)]


def base_of(folder: Path, family: str) -> Path:
    return small_encoder(folder, family) if family in ENCODERS else small_base(folder, family)


@pytest.fixture(scope="module")
def bases_of(tmp_path_factory, one_thread):
    made = {}

    def of(family: str) -> Path:
        if family not in made:
            made[family] = base_of(tmp_path_factory.mktemp(family), family)
        return made[family]

    return of


def loaded(folder: Path, rows=ROWS, precision="float32", **settings):
    """(path, encoded rows, plan, recipe) of a fresh classifier."""
    recipe = Recipe(task="text_labels", lora_rank=4, max_tokens=48, **settings)
    its = models.load_base(folder, recipe, {"precision": precision, **TASK.decide(rows, [], recipe)})
    model = models.attach_lora(its.model, recipe, "test/small", "", its.plan["heads"])
    encoded = [TASK.encode_row(row, its.tokenizer, recipe)[0].bare() for row in rows]
    return TASK.path(model, its.tokenizer, recipe, its.plan, rows), encoded, its.plan, recipe


def step(path, encoded) -> float:
    """A gradient over these rows; the loss."""
    path.model.train()
    losses, _ = path.losses(path.collate(encoded))
    losses.mean().backward()
    return float(losses.mean())


@pytest.mark.parametrize("family", FAMILIES)
def test_head_and_lora_learn_and_nothing_else_does(bases_of, home, family):
    """The head is fresh, whole and not in 4 bits; each LoRA weight and each head weight gets a gradient."""
    path, encoded, plan, _ = loaded(bases_of(family))
    step(path, encoded[:8])
    learned = {name for name, its in path.model.named_parameters() if its.requires_grad}
    assert learned and all("lora_" in name or "modules_to_save" in name for name in learned)
    silent = [name for name in learned if "lora_A" not in name and not path.model.get_parameter(name).grad.abs().sum() > 0]
    assert not silent  # lora_A has none while lora_B is zero
    assert any("modules_to_save" in name for name in learned) and any("lora_B" in name for name in learned)
    assert not [name for name in learned if "lora_" in name and any(f".{its.rsplit('.', 1)[-1]}." in name for its in plan["heads"])]
    assert all(its.dtype == torch.float32 for name, its in path.model.named_parameters() if name in learned)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_saved_is_what_plain_peft_computes(bases_of, home, tmp_path, family):
    """Head, LoRA and labels come back from the folder alone; the last token that is no padding is the one that a decoder's head reads."""
    from peft import PeftModel
    from transformers import AutoConfig, AutoModelForSequenceClassification

    path, encoded, plan, recipe = loaded(bases_of(family), quantisation="none")
    optimizer = torch.optim.AdamW([its for its in path.model.parameters() if its.requires_grad], lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        step(path, encoded)
        optimizer.step()
    path.model.eval()
    models.save_adapter(path.model, tmp_path / "adapter")
    TASK.keep_files(bases_of(family), tmp_path / "adapter", plan)
    with torch.no_grad():
        ours = path.logits(path.collate(encoded[:6]))
    config = AutoConfig.from_pretrained(tmp_path / "adapter")
    assert list(config.id2label.values()) == ["ball", "bird", "cat", "goat"]
    base = AutoModelForSequenceClassification.from_pretrained(bases_of(family), config=config, ignore_mismatched_sizes=True, dtype=torch.float32, attn_implementation=plan["attention"])
    plain = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        alone = torch.cat([plain(input_ids=torch.tensor([its.ids])).logits for its in encoded[:6]])
    assert torch.allclose(ours, alone, atol=2e-4), float((ours - alone).abs().max())
    fresh, _, _, _ = loaded(bases_of(family), quantisation="none")
    fresh.model.eval()
    with torch.no_grad():
        assert not torch.allclose(fresh.logits(fresh.collate(encoded[:6])), ours, atol=0.05)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_and_the_batch_change_no_logit(bases_of, home, family):
    path, encoded, _, _ = loaded(bases_of(family), quantisation="none")
    long = TASK.encode_row({"text": "the dog and the cat " * 6, "label": "cat"}, TASK.load_tokenizer(str(bases_of(family))), Recipe(max_tokens=48))
    path.model.eval()
    alone = path.over(encoded[:4], path.logits, tokens_at_once=1)
    beside = path.over([*encoded[:4], *long], path.logits)[:4]
    assert np.allclose(np.concatenate(alone), np.concatenate(beside), atol=2e-5)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_gradients_after_an_evaluation_are_those_before(bases_of, home, family):
    """In 4 bits, packed: bitsandbytes repacks weights at an evaluation, and would pass no gradient afterwards."""
    path, encoded, _, _ = loaded(bases_of(family), precision="bfloat16")
    path.model.eval()
    grads = []
    for _ in range(2):
        path.model.zero_grad()
        losses, _ = path.losses(path.collate(encoded[:8]))
        losses.mean().backward()
        grads.append([its.grad.clone() for its in path.model.parameters() if its.grad is not None])
        path.judge(encoded)
    assert all(torch.equal(a, b) for a, b in zip(*grads))


def test_the_parts_of_a_batch_add_up_to_it(bases_of, home):
    path, encoded, _, _ = loaded(bases_of("bert"), quantisation="none")
    path.model.eval()
    whole = path.collate(encoded[:12])
    parts = path.parts(whole, 40)
    assert len(parts) > 2 and torch.equal(torch.cat([its["labels"] for its in parts]), whole["labels"])
    assert torch.allclose(torch.cat([path.losses(its)[0] for its in parts]), path.losses(whole)[0], atol=1e-5)


def test_balanced_classes_weigh_alike_in_training_only(bases_of, home):
    rows = [{**row, "label": "rare" if row["n"] == 1 else "usual"} for row in ROWS]
    path, encoded, _, _ = loaded(bases_of("bert"), rows, class_weights="balanced", quantisation="none")
    path.model.eval()
    weighed = path.losses(path.collate(encoded))[0]
    with torch.no_grad():
        plain = path.losses(path.collate(encoded))[0]
    ratio = (weighed / plain).detach()
    assert float(ratio[0]) == pytest.approx(16) and float(ratio[1]) == pytest.approx(32 / 62) and float(ratio.mean()) == pytest.approx(1, abs=0.01)


def test_several_labels_a_row(bases_of, home):
    """Each label stands for itself; a row may have none."""
    rows = [{"text": f"the cat and mat {n}", "labels": [["a"], ["a", "b"], []][n % 3], "n": n} for n in range(12)]
    path, encoded, _, _ = loaded(bases_of("bert"), rows, quantisation="none")
    assert path.several and path.targets(encoded)[:3].tolist() == [[1, 0], [1, 1], [0, 0]]
    assert np.isfinite(step(path, encoded))
    path.model.eval()
    with torch.no_grad():
        its = path.losses(path.collate(encoded))[0]
        logits, targets = path.logits(path.collate(encoded)), path.targets(encoded)
    assert torch.allclose(its, torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1))


def test_the_second_text_is_told_apart(bases_of, home):
    path, _, _, recipe = loaded(bases_of("bert"), quantisation="none")
    tokenizer = TASK.load_tokenizer(str(bases_of("bert")))
    its = TASK.encode_row({"text": "the cat", "text_b": "the dog", "label": "cat"}, tokenizer, recipe)[0]
    padded = path.padded(path.collate([its]))
    assert padded["token_type_ids"][0].tolist()[: len(its.ids)] == [0] * its.second + [1] * (len(its.ids) - its.second) and 0 < its.second < len(its.ids)


# Feature distillation ---------------------------------------------------------------------------------------------


def taught(folder: Path, tmp_path, weight: float = 3.0, rows=ROWS, **settings):
    """(path, encoded rows, recipe, what was said) of a fresh classifier with its teacher."""
    path, encoded, _, recipe = loaded(folder, rows, quantisation="none", feature_distillation=weight, **settings)
    said = distillation.begin(path, encoded, label_learning.truths(path, encoded), recipe, tmp_path / distillation.FILE)
    return path, encoded, recipe, said


@pytest.mark.parametrize("family", ENCODERS)
def test_the_pull_is_the_gradient_of_the_distance_to_the_bases_own_mean(bases_of, home, tmp_path, family):
    """Against a plain reference: the mean over tokens by transformers' own model, and both losses written out."""
    path, encoded, _, said = taught(bases_of(family), tmp_path)
    assert said == "" and path.teacher is not None
    plain = path.model.get_base_model()
    base = getattr(plain, plain.base_model_prefix)
    path.model.eval()
    with torch.no_grad(), path.model.disable_adapter():
        means = torch.stack([base(input_ids=torch.tensor([its.ids])).last_hidden_state[0].mean(0) for its in encoded])
    goals = (means - means.mean(0)) / means.std(0, correction=0).clamp(min=1e-4)
    assert torch.allclose(path.teacher.goals, goals, atol=2e-3)
    chosen = path.varied(encoded[:6], list(range(6)), 0)
    losses, _ = path.losses(path.collate(chosen))
    losses.sum().backward()
    ours = {name: its.grad.clone() for name, its in path.model.named_parameters() if its.grad is not None}
    path.model.zero_grad()
    wanted = 0.0
    for row, goal in zip(encoded[:6], goals):
        ids = torch.tensor([row.ids])
        out = base(input_ids=ids)
        pooled = getattr(out, "pooler_output", None)
        read = pooled[0] / 0.5 if pooled is not None else (out.last_hidden_state[0, 0] - means.mean(0)) / means.std(0, correction=0).clamp(min=1e-4)
        logits = path.model(input_ids=ids).logits
        wanted = wanted + torch.nn.functional.cross_entropy(logits, path.targets([row])) + 3.0 * (read - goal).square().mean()
    wanted.backward()
    for name, its in path.model.named_parameters():
        if its.requires_grad and its.grad is not None:
            assert torch.allclose(ours[name], its.grad, atol=2e-3 * max(1.0, float(its.grad.abs().max()))), name


def test_what_is_told_is_the_cross_entropy_alone_and_the_parts_add_up(bases_of, home, tmp_path):
    path, encoded, _, _ = taught(bases_of("bert"), tmp_path)
    path.model.eval()
    chosen = path.varied(encoded[:12], list(range(12)), 0)
    whole = path.collate(chosen)
    assert torch.equal(path.losses(whole)[0], path.losses(path.collate(encoded[:12]))[0])
    grads = []
    for parts in ([whole], path.parts(whole, 40)):
        path.model.zero_grad()
        for part in parts:
            path.losses(part)[0].sum().backward()
        grads.append([its.grad.clone() for its in path.model.parameters() if its.grad is not None])
    assert len(path.parts(whole, 40)) > 2 and all(torch.allclose(a, b, atol=1e-4) for a, b in zip(*grads))


def test_the_head_begins_as_the_baseline(bases_of, home, tmp_path):
    """On a vector that carries the goal, the head's logits are those of the logistic regression."""
    from tuner.tasks.label_report import fitted

    path, encoded, recipe, _ = taught(bases_of("bert"), tmp_path)
    head = path.model.get_base_model().classifier.modules_to_save["default"]
    weight, bias = fitted(path.teacher.goals.double().numpy(), label_learning.truths(path, encoded), False, distillation.STRENGTH, recipe)
    with torch.no_grad():
        assert np.allclose(head(path.teacher.goals * distillation.HALF).numpy(), path.teacher.goals.numpy() @ weight + bias, atol=1e-4)
    assert head.weight.std() > 1e-3


def test_what_the_head_reads_comes_nearer_to_its_goals(bases_of, home, tmp_path):
    path, encoded, _, _ = taught(bases_of("bert"), tmp_path)
    chosen = path.varied(encoded, list(range(len(encoded))), 0)

    def far() -> float:
        path.model.eval()
        with torch.no_grad():
            path.logits(path.collate(encoded))
            return float(path.teacher.distance(path.read, path.teacher.goals, path.is_pooled).mean())

    before = far()
    optimizer = torch.optim.AdamW([its for its in path.model.parameters() if its.requires_grad], lr=5e-3)
    for _ in range(30):
        optimizer.zero_grad()
        path.losses(path.collate(chosen))[0].mean().backward()
        optimizer.step()
    assert far() < 0.6 * before


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_head_that_reads_another_token_is_left_alone_and_said(bases_of, home, tmp_path, family):
    path, encoded, _, said = taught(bases_of(family), tmp_path)
    assert "does not read the first token" in said and path.teacher is None
    assert path.varied(encoded, list(range(len(encoded))), 0) is encoded and not (tmp_path / distillation.FILE).exists()


def test_a_run_killed_while_it_keeps_the_features_finds_them_whole_or_not_at_all(bases_of, home, tmp_path, monkeypatch):
    """The file is there with all that belongs in it, or it is not; a resumed run has the very same features."""
    def dies(_descriptor):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", dies)
        with pytest.raises(KeyboardInterrupt):
            taught(bases_of("bert"), tmp_path)
    assert not (tmp_path / distillation.FILE).exists()
    first = taught(bases_of("bert"), tmp_path)[0].teacher.goals
    monkeypatch.setattr(label_model.TextPath, "features", lambda *_: pytest.fail("they were made again"))
    assert torch.equal(taught(bases_of("bert"), tmp_path)[0].teacher.goals, first)


def test_a_killed_distilled_run_ends_as_if_it_had_not_been(bases_of, home, quick):
    whole, other = (label_run(bases_of("bert"), feature_distillation=3.0) for _ in range(2))
    train.train(whole)
    die_after(4, other)
    train.train(other)
    assert losses(other) == losses(whole) and adapter_hash(other.adapter_dir) == adapter_hash(whole.adapter_dir)
    plain = label_run(bases_of("bert"))
    train.train(plain)
    assert losses(plain) != losses(whole)


# Runs -------------------------------------------------------------------------------------------------------------

RECORDS = [{"text": f"The {ANIMALS[n % 4]} sat on the {ANIMALS[n * 3 % 8]} and ran after {n}", "label": ANIMALS[n % 4 // 2]} for n in range(40)]


def label_run(base: Path, records=RECORDS, **settings) -> runs.Run:
    recipe = Recipe(**{
        "task": "text_labels", "base_model": "test/small", "learning_rate": 5e-3, "lora_rank": 4, "epochs": 3.0, "batch_size": 8,
        "held_out_share": 0.25, "evaluations": 4, "max_tokens": 48, "patience": 0, **settings,
    })
    dataset = data.keep("local", "Animals", records, {"kind": "paste"})
    run = runs.create("local", recipe, dataset)
    write_json(run.folder / "base.json", base_entry(base))
    return run


@pytest.fixture(scope="module")
def done(tmp_path_factory, one_thread):
    """A TUNER_HOME with a finished run of a classifier; to be read only, or copied."""
    from tests.conftest import make_quick

    folder = tmp_path_factory.mktemp("labelled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNER_HOME", str(folder / "home"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        make_quick(patch)
        going = label_run(small_encoder(folder / "base"))
        runs.claim(going)
        assert train.main(going) == 0, going.error()
    return folder / "home"


@pytest.fixture
def run(done, monkeypatch):
    monkeypatch.setenv("TUNER_HOME", str(done))
    return runs.mine("local")[0]


def test_a_run_tells_loss_accuracy_and_macro_f1(run):
    evals = events(run, "eval")
    assert evals[0]["step"] == 0 and all({"loss", "accuracy", "macro_f1"} <= its.keys() for its in evals)
    best = max(evals, key=lambda its: (round(its["macro_f1"], 9), -its["loss"]))
    assert [its["step"] for its in evals if its["best"]][-1] == best["step"] == run.read("report")["best_step"]
    assert run.state() == "done" and events(run, "sample")[-1]["text"].count("%") == 2


def test_the_report_is_the_same_when_it_is_made_again(run, quick):
    before = (run.folder / "report.json").read_bytes()
    report.remake(run)
    assert (run.folder / "report.json").read_bytes() == before
    its = json.loads(before)
    assert {"majority", "base", "tuned", "difference", "over_majority", "confusion", "rows", "probe", "says"} <= its.keys()
    held = len(run.rows("held_out"))
    assert sum(map(sum, its["confusion"]["tuned"])) == held == sum(len(cell) for line in its["confusion"]["rows"] for cell in line)
    assert {n for line in its["confusion"]["rows"] for cell in line for n in cell} == {row["n"] for row in run.rows("held_out")}


def test_a_killed_run_ends_as_if_it_had_not_been(done, tmp_path, quick, monkeypatch):
    """Dropout of the base included: its random state is kept with each checkpoint."""
    monkeypatch.setenv("TUNER_HOME", str(shutil.copytree(done, tmp_path / "home")))
    whole = runs.mine("local")[0]
    other = label_run(Path(whole.read("base")["dir"]))
    die_after(4, other)
    train.train(other)
    assert losses(other) == losses(whole) and adapter_hash(other.adapter_dir) == adapter_hash(whole.adapter_dir)
    assert other.read("report") == whole.read("report")


@pytest.mark.parametrize("scores, falls, counted, best", [
    ([0.1] * 9, [3.0, 2.5, 2.0, 2.0, 2.1, 1.0], 4, 2),  # macro-F1 stands still: the loss decides, and still falls at first
    ([0.1, 0.2, 0.3, 0.3, 0.9], [3.0, 3.1, 3.2, 3.3, 1.0], 4, 2),  # the loss only rises: macro-F1 decides
    ([0.5, 0.6] + [0.1] * 7, [3.0, 2.9, 2.8, 2.7, 2.8, 1.0], 5, 1),  # a lower loss puts the end off, and is not taken for better
    ([0.1] * 9, [3.0, 3.1, 3.2, 3.3, 3.4, 3.5, 3.6, 3.7, 3.8], 5, 0),  # nothing is better than a new head's guesses: the first half is waited for
    ([0.1] * 3 + [0.2] + [0.1] * 5, [3.0, 3.1, 3.2, 3.3, 3.4, 3.5, 3.6, 3.7, 3.8], 5, 3),  # and whoever begins late is not ended before
])
def test_patience_waits_for_both_macro_f1_and_loss(bases_of, home, quick, scores, falls, counted, best):
    from tuner.tasks import label_learning

    measure, asked = label_learning.Learning.measure, []

    def measured(self):
        asked.append(None)
        return {**measure(self), "macro_f1": scores[len(asked) - 1], "loss": falls[len(asked) - 1]}

    quick.setattr(label_learning.Learning, "measure", measured)
    run = label_run(bases_of("bert"), patience=1, evaluations=8)
    train.train(run)
    evals = [its for its in run.events()[0] if its["kind"] == "eval"]
    assert len(evals) == counted and [its["step"] for its in evals if its["best"]][-1] == evals[best]["step"]
    assert "Neither macro-F1 nor loss on held-out rows has improved in 1 evaluations" in notes(run)


def test_rows_of_another_task_are_refused_in_words(bases_of, home):
    with pytest.raises(Exception, match="The rows are read as texts with labels, and the recipe wants conversations"):
        label_run(bases_of("bert"), task="chat")


def test_the_card_and_the_files_say_which_labels(run):
    text = card.build(run, "alice/animals", "https://example.org")
    outgoing.require_card(text)
    assert "pipeline_tag: text-classification" in text and "| **cat** |" in text and "type: f1" in text
    assert "AutoModelForSequenceClassification.from_pretrained(\"test/small\", config=config" in text
    assert "class_weights" in text and "system_prompt" not in text.split("```toml")[1]
    files = outgoing.collect(run, text, {"run": run.id, **card.record(run)})
    assert {"config.json", "tokenizer.json", "tokenizer_config.json"} <= files.keys()
    assert json.loads(Path(files["config.json"]).read_text())["id2label"] == {"0": "cat", "1": "dog"}
    assert json.loads(files["tuner.json"])["labels"] == {"names": ["cat", "dog"], "several": False, "pair": False}
    assert run.folder.parent.name not in Path(files["config.json"]).read_text()


def test_plain_peft_finds_the_published_classifier_equal(run, tmp_path):
    plan = run.read("plan")
    shutil.copytree(run.adapter_dir, tmp_path / "published")
    asked = {
        "base_dir": run.read("base")["dir"], "own_dir": str(run.adapter_dir), "published_dir": str(tmp_path / "published"), "task": "text_labels",
        "quantisation": "nf4", "precision": plan["precision"], "attention": plan["attention"], "kept_16bit": plan["kept_16bit"], **TASK.record(plan),
    }
    assert verify.compare(asked)["moved"] > 0.001


def test_the_command_line_gives_labels_with_probabilities(run, capsys):
    from tuner import cli

    assert cli.main(["chat", run.id, "--prompt", "The cat sat on the mat", "--base", "--json"]) == 0
    its = json.loads(capsys.readouterr().out)
    assert its["tuned"].keys() == its["base"].keys() == {"cat", "dog"} and sum(its["tuned"].values()) == pytest.approx(1, abs=1e-5)
    assert cli.main(["chat", run.id, "--prompt", "The cat sat on the mat"]) == 0
    assert "%  cat" in capsys.readouterr().out


def test_a_worker_labels_what_is_tried_and_tells_what_mattered(run):
    """Through a process of its own: the same probabilities, beside the frozen features; each word left out once; refusals in words."""
    subject, asked = chat.of_run(run), ["The cat sat on the mat", "The dog ran"]
    labeller = labelling.Labeller(idle_s=30)
    try:
        found = labeller.look(subject, asked)
        with TASK.worker() as alone:
            wanted, frozen = alone.probabilities(subject, asked), alone.probabilities(subject, asked, tuned=False)
            without = alone.probabilities(subject, ["cat sat on the mat"])[0]
        for its, tuned, base in zip(found, wanted, frozen):
            assert its["tuned"] == pytest.approx(tuned, abs=1e-6) and its["base"] == pytest.approx(base, abs=1e-6) and list(its["tuned"]) == list(tuned)
        assert [(one["start"], one["end"]) for one in found[0]["parts"]] == [(0, 3), (4, 7), (8, 11), (12, 14), (15, 18), (19, 22)]
        top = next(iter(wanted[0]))
        assert found[0]["parts"][0]["drop"] == pytest.approx(wanted[0][top] - without[top], abs=1e-6)
        assert labeller.look(subject, asked[:1], explain=False)[0]["parts"] is None
        for values, words in (([], "nothing to label"), (["a"] * 33, "33 at once"), (["x" * 60_000], "the most is"), ([" "], "no text to label"), ([{}], "no text to label")):
            with pytest.raises(UserError, match=words):
                labeller.look(subject, values)
        labeller._process.kill()  # a crash is told, and the next question has another process
        labeller._process.wait()
        assert labeller.look(subject, asked[:1])[0]["tuned"] == pytest.approx(wanted[0], abs=1e-6)
    finally:
        labeller.close()


def test_a_chat_with_a_classifier_is_refused_in_words(run):
    with chat.Worker() as worker, pytest.raises(UserError, match="gives labels, not answers"):
        list(worker.answer(chat.of_run(run), [{"role": "user", "content": "hello"}]))


def test_what_a_kept_run_holds_is_judged_by_its_task(run):
    """Its own plan, rows and evaluations pass; what another task's would have does not."""
    plan, row = run.read("plan"), run.rows("train")[0]
    known = {**homecoming._PLAN, **TASK.PLANNED}
    assert not [name for name, its in plan.items() if not known[name](its)] and set(known) - homecoming._NOT_ALWAYS == set(plan)
    assert TASK.is_row(row) and not tasks.get("chat").is_row({**row, "messages": []}) and not TASK.is_row({"text": "a"})
    for bad in ({"names": ["a"]}, {"names": [1], "several": False, "pair": False}, {"names": ["a"] * 20_000, "several": False, "pair": False}):
        assert not TASK.PLANNED["labels"](bad)
    measured = events(run, "eval")[-1]
    kept = homecoming._clean({**measured, "secret": 1}, TASK.EVAL_FIGURES)
    assert kept["macro_f1"] == measured["macro_f1"] and "secret" not in kept


def test_a_report_that_has_not_the_time_asks_less_and_says_so(done, tmp_path, monkeypatch, quick):
    """All held-out rows whatever it takes; a quarter of the probe; a baseline on the fewest rows. Made again it is the same."""
    shutil.copytree(done, tmp_path / "home")
    monkeypatch.setenv("TUNER_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(label_report.cost, "LINE_FEWEST", 20)
    shipped = [json.loads(line) for line in probe.PATH.read_text().splitlines()]  # `quick` has a few of them
    monkeypatch.setattr(probe, "items", lambda: shipped)
    run = runs.mine("local")[0]
    whole, rows = report.remake(run, seconds=math.inf), len(run.rows("train"))
    short = report.remake(run, seconds=0.0)
    assert short["held_out_rows"] == whole["held_out_rows"] and short["tuned"] == whole["tuned"]
    assert (short["base"]["rows"], whole["base"]["rows"]) == (20, rows) and rows > 20
    assert (short["probe"]["items"], short["probe"]["of"], whole["probe"]["items"]) == (25, 114, 114)
    assert short["probe"]["subjects"]["classes"] == 5, "five items of each of five subjects: of one item each nothing could be read"
    told = f"learned from 20 of the {rows} training rows; from all of them it might do better."
    assert any(told in words for words in short["says"]) and not any("might do better" in words for words in whole["says"])
    assert any("of 25 of 114 " in words for words in short["says"]) and len(label_card.left_out(short)) == 2 and not label_card.left_out(whole)
    assert "25 of 114 general texts" in label_card.measures(short)[-1]["of"] and label_card.measures(whole)[-1]["of"].startswith("114 ")
    assert any("report RUN --all takes it" in words for words in TASK.advice(short)) and not any("--all" in words for words in TASK.advice(whole))
    assert f"cross-validation on 20 of the {rows} training rows." in card.build(run, "alice/animals", "https://example.org")
    assert report.remake(run) == short and report.remake(run, seconds=math.inf) == whole


def test_a_baseline_learns_from_as_many_rows_as_there_is_time_for():
    """By how long a held-out row took and how long a fit is reckoned to take; from two hundred at least."""
    of = lambda left: label_report._lines(50_000, left, 0.01, 64, 3)  # noqa: E731
    assert label_report._lines(50_000, 0.0, 0.01, 64, 77) == 5 * 77, "some of every class"
    assert of(math.inf) == cost.LINE_ROWS and label_report._lines(900, math.inf, 0.01, 64, 3) == 900
    assert of(-1.0) == of(0.0) == cost.LINE_FEWEST and label_report._lines(90, 0.0, 0.01, 64, 3) == 90
    some = of(30.0)
    assert 200 < some < 3000 and some * 0.01 + cost.line_s(64, some, 3) <= 30.0 < (some + 1) * 0.01 + cost.line_s(64, some + 1, 3)


def test_a_baseline_of_few_rows_knows_every_class():
    """Of classes as rare as can be some rows are among the few; the same for the same seed, and all where there is time for all."""
    rows = [{"label": "usual" if n % 500 else "rare" if n else "once", "n": n} for n in range(3000)] + [{"labels": ["usual", "other"], "n": 3000}]
    for seed in range(20):
        some = label_report._some(rows, seed, 200)
        had = [name for row in some for name in label_report.names_in(row)]
        assert len(some) == 200 and [row["n"] for row in some] == sorted({row["n"] for row in some})
        assert (had.count("rare"), had.count("once"), had.count("other")) == (5, 1, 1) and some == label_report._some(rows, seed, 200)
    assert label_report._some(rows, 0, 200) != some and label_report._some(rows, 0, 3001) is rows
    plain = np.sort(np.random.default_rng(3).choice(3001, 200, replace=False)).tolist()
    assert [row["n"] for row in label_report._some(rows, 3, 200, by_class=False)] == plain, "as earlier versions drew"


def test_a_part_of_the_probe_is_of_subjects_that_can_be_told_apart():
    about = [subject for subject in "abcdefghijklmnopqrs" for _ in range(6)]
    of = lambda count: [about[place] for place in label_report._of_each(about, count)]  # noqa: E731
    assert of(114) == about and of(28) == [subject for subject in "abcde" for _ in range(5)] and of(1) == ["a"] * 5 + ["b"] * 5
    assert of(100) == [subject for subject in "abcdefghijklmnopqrs" for _ in range(5)]
    digits = [digit for digit in "01234" for _ in range(40)]
    assert [digits[place] for place in label_report._of_each(digits, 50)] == [digit for digit in "01234" for _ in range(10)]


def test_the_largest_class_is_that_of_all_training_rows():
    names = ["a", "b", "c"]
    rows = [{"label": "b"}] * 51 + [{"label": "a"}] * 49 + [{"labels": ["c", "a"]}]
    assert label_report._majority(rows, names, 2).tolist() == [[False, True, False]] * 2
    assert label_report._majority(rows[-1:] * 52 + rows, names, 1).tolist() == [[True, False, True]]
    assert label_report._majority(rows[1:51] + rows[51:100] + rows[51:52], names, 1).tolist() == [[False, True, False]], "the same of two that are equal, always"


def test_rows_of_one_class_alone_make_a_baseline_too():
    features, recipe = np.random.default_rng(0).standard_normal((40, 3)), Recipe(task="text_labels")
    line = label_report.Line.fit(features, np.eye(3, dtype=bool)[[1] * 40], False, recipe)
    assert line.probabilities(features).argmax(1).tolist() == [1] * 40


def test_several_labels_and_two_texts_go_through_a_whole_run(bases_of, home, quick):
    records = [{"text": f"The {ANIMALS[n % 4]} and {n}", "text_b": f"on the {ANIMALS[n % 3]}", "labels": [ANIMALS[n % 4]] + ([ANIMALS[n % 3]] if n % 2 else [])} for n in range(40)]
    run = label_run(bases_of("bert"), records, epochs=1.0, class_weights="balanced")
    train.train(run)
    made = run.read("report")
    assert made["several"] and "confusion" not in made and len(made["tuned"]["by_class"]) == 4
    assert read_json(run.adapter_dir / "config.json")["problem_type"] == "multi_label_classification"
    card.build(run, "alice/animals", "https://example.org")


@pytest.mark.parametrize("family", ENCODERS)
def test_an_encoder_s_sizes_are_its_own(bases_of, home, family):
    """By headers exactly, by the config nearly: what the quote rests on."""
    folder = bases_of(family)
    model = models.load_base(folder, Recipe(task="text_labels", quantisation="none"), TASK.decide(ROWS, [], Recipe())).model
    linear = sum(its.weight.numel() for name, its in model.named_modules() if isinstance(its, torch.nn.Linear) and ".layer" in name)
    exact, about = sizes.in_folder(folder), sizes.of_config(read_json(folder / "config.json"))
    assert exact.exact and exact.linear + exact.odd == linear == about.linear + about.odd
    assert exact.lora_attention < exact.lora and abs(about.weights / exact.weights - 1) < 0.35
