"""Tests of picture classifiers on tiny random bases of each kind: what is adapted, what stays still, what comes back; runs from start to report."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.drawn import SHAPES, coded, noise, shape, shapes_zip
from tests.small import base_entry, small_seer
from tests.small_run import adapter_hash, die_after, events, losses, notes
from tuner import card, check, data, models, outgoing, pictures, reading, report, seeing, sizes, tasks, train, verify
from tuner import run as runs
from tuner.errors import UserError
from tuner.home import write_json
from tuner.recipe import Recipe

ROOT = Path(__file__).resolve().parent.parent
FAMILIES = ("resnet", "resnet-bottleneck", "convnextv2", "vit", "dinov2")
TASK = tasks.get("image_labels")
ROWS = [{**TASK.picture_row(coded(shape(kind, seed)), f"{kind}{seed}.png", kind), "n": 3 * seed + at + 1} for seed in range(8) for at, kind in enumerate(SHAPES)]


@pytest.fixture(scope="module")
def bases_of(tmp_path_factory, one_thread):
    made = {}

    def of(family: str, classes: int | None = None) -> Path:
        key = (family, classes)
        if key not in made:
            made[key] = small_seer(tmp_path_factory.mktemp(family), family, (0 if family == "dinov2" else 7) if classes is None else classes)
        return made[key]

    return of


def loaded(folder: Path, rows=ROWS, precision="float32", **settings):
    """(path, encoded rows, plan, recipe) of a fresh classifier."""
    recipe = Recipe(**{"task": "image_labels", "lora_rank": 4, **settings})
    its = models.load_base(folder, recipe, {"precision": precision, **TASK.decide(rows, [], recipe)})
    model = models.attach_lora(its.model, recipe, "test/small", "", its.plan["heads"])
    encoded = [TASK.encode_row(row, its.tokenizer, recipe)[0].bare() for row in rows]
    return TASK.path(model, its.tokenizer, recipe, its.plan, rows), encoded, its.plan, recipe


def step(path, encoded) -> float:
    """A gradient over these rows; the loss."""
    path.model.train()
    found, _ = path.losses(path.collate(encoded))
    found.mean().backward()
    return float(found.mean())


def learn(path, encoded, steps: int = 3, rate: float = 1e-2) -> None:
    optimizer = torch.optim.AdamW([its for its in path.model.parameters() if its.requires_grad], lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        step(path, encoded)
        optimizer.step()
    path.model.eval()


# The model --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family, adapted", [
    ("resnet", ["convolution"]), ("resnet-bottleneck", ["convolution"]), ("convnextv2", ["pwconv1", "pwconv2"]),
    ("vit", ["fc1", "fc2", "k_proj", "o_proj", "q_proj", "v_proj"]), ("dinov2", ["fc1", "fc2", "k_proj", "o_proj", "q_proj", "v_proj"]),
])
def test_head_and_adapted_layers_learn_and_nothing_else_does(bases_of, home, family, adapted):
    """LoRA sits on convolutions where the base is all convolutions, else on its linear layers; the head is fresh and whole."""
    path, encoded, plan, _ = loaded(bases_of(family))
    assert sorted(path.model.peft_config["default"].target_modules) == adapted and plan["heads"] == ["classifier"]
    step(path, encoded)
    learned = {name: its for name, its in path.model.named_parameters() if its.requires_grad}
    assert all("lora_" in name or "modules_to_save" in name for name in learned) and all(its.dtype == torch.float32 for its in learned.values())
    silent = [name for name, its in learned.items() if "lora_A" not in name and not its.grad.abs().sum() > 0]
    assert not silent and any("modules_to_save" in name for name in learned) and any("lora_B" in name for name in learned)


@pytest.mark.parametrize("family", ["resnet", "vit"])
def test_a_head_for_as_many_other_classes_begins_anew(bases_of, home, family):
    """Its own knows the wrong ones; one that knows these is kept."""
    folder = bases_of(family, 3)
    path, _, _, _ = loaded(folder)
    known = models.load_base(folder, Recipe(task="image_labels"), {"precision": "float32", "labels": {"names": [f"class {n}" for n in range(3)], "several": False, "pair": False}}).model
    weight = lambda model: [its for name, its in model.named_parameters() if "classifier" in name and name.endswith("weight")][-1]  # noqa: E731
    from safetensors.torch import load_file

    stored = next(its for name, its in load_file(folder / "model.safetensors").items() if "classifier" in name and name.endswith("weight"))
    assert torch.equal(weight(known), stored) and not torch.allclose(weight(path.model), stored)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_saved_is_what_plain_peft_computes(bases_of, home, tmp_path, family):
    """Logits after reloading are equal: batch-norm stayed still, since what it would have learned is not in the adapter."""
    from peft import PeftModel
    from transformers import AutoConfig, AutoModelForImageClassification

    path, encoded, plan, recipe = loaded(bases_of(family), quantisation="none")
    before = {name: its.clone() for name, its in path.model.named_buffers() if "running" in name or "batches" in name}
    learn(path, encoded)
    assert all(torch.equal(its, before[name]) for name, its in path.model.named_buffers() if name in before)
    assert bool(before) == family.startswith("resnet")
    models.save_adapter(path.model, tmp_path / "adapter")
    TASK.keep_files(bases_of(family), tmp_path / "adapter", plan)
    with torch.no_grad():
        ours = path.logits(path.collate(encoded[:6]))
    config = AutoConfig.from_pretrained(tmp_path / "adapter")
    assert list(config.id2label.values()) == sorted(SHAPES)
    base = AutoModelForImageClassification.from_pretrained(
        bases_of(family), num_labels=3, id2label=config.id2label, label2id=config.label2id, ignore_mismatched_sizes=True, dtype=torch.float32,
    )
    plain = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        theirs = plain(pixel_values=path.collate(encoded[:6])["pixel_values"]).logits
    assert torch.allclose(ours, theirs, atol=2e-5) and float(ours.std()) > 0.01
    loose = loaded(bases_of(family), quantisation="none")[0]
    with torch.no_grad():
        assert not torch.allclose(loose.logits(path.collate(encoded[:6])), ours, atol=1e-3)


def test_batch_norm_that_is_not_kept_still_would_show(bases_of, home, monkeypatch):
    """The test above can fail: without that, statistics move."""
    from tuner.tasks import image_model

    monkeypatch.setattr(image_model, "keep_still", lambda model: 0)
    path, encoded, _, _ = loaded(bases_of("resnet"), quantisation="none")
    before = {name: its.clone() for name, its in path.model.named_buffers() if "running" in name}
    step(path, encoded)
    assert any(not torch.equal(its, before[name]) for name, its in path.model.named_buffers() if name in before)


@pytest.mark.parametrize("family, attention", [("resnet", "eager"), ("convnextv2", "eager"), ("vit", "sdpa"), ("dinov2", "sdpa")])
def test_attention_is_torch_s_where_the_class_has_it(bases_of, home, family, attention):
    assert loaded(bases_of(family))[2]["attention"] == attention


@pytest.mark.parametrize("family, said", [
    ("resnet", "Nothing of this base is in 4 bits"), ("convnextv2", "in convolutions"), ("vit", "In 4 bits are"),
])
def test_the_run_says_what_is_in_4_bits(bases_of, home, family, said):
    path, _, plan, recipe = loaded(bases_of(family), precision="bfloat16")
    [words] = TASK.weights_in_words(path.model.get_base_model(), plan, recipe)
    assert said in words and "frozen in 16 bits" in words
    assert TASK.weights_in_words(path.model.get_base_model(), plan, Recipe(task="image_labels", quantisation="none")) == []


@pytest.mark.parametrize("family", ["convnextv2", "vit"])
def test_gradients_after_an_evaluation_are_those_before(bases_of, home, monkeypatch, family):
    """In 4 bits, packed: bitsandbytes repacks weights at an evaluation, and would pass no gradient afterwards."""
    monkeypatch.setattr(models, "room_to_dequantise", lambda model, device: False)
    path, encoded, plan, _ = loaded(bases_of(family), precision="bfloat16")
    assert models.linears_4bit(path.model) and not plan["dequantised"]
    grads = []
    for _ in range(2):
        path.model.zero_grad()
        step(path, encoded[:6])
        grads.append([its.grad.clone() for its in path.model.parameters() if its.grad is not None])
        path.model.eval()
        path.judge(encoded)
    assert all(torch.equal(a, b) for a, b in zip(*grads))


def test_attention_layers_of_a_base_without_any(bases_of, home):
    with pytest.raises(UserError, match="no attention layers"):
        loaded(bases_of("resnet"), target_modules="attention")
    path, _, _, _ = loaded(bases_of("vit"), target_modules="attention")
    assert not {"fc1", "fc2"} & set(path.model.peft_config["default"].target_modules)


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_what_the_head_reads(bases_of, home, family):
    """The head itself over them gives the logits."""
    path, encoded, _, _ = loaded(bases_of(family), quantisation="none")
    path.model.eval()
    found = torch.from_numpy(path.features(encoded[:4]))
    head = path.model.get_base_model().classifier.modules_to_save["default"]
    line = [its for its in head.modules() if isinstance(its, torch.nn.Linear)][-1]
    with torch.no_grad():
        assert torch.allclose(line(found), path.logits(path.collate(encoded[:4])), atol=1e-4)


def test_the_parts_of_a_batch_add_up_to_it(bases_of, home):
    path, encoded, _, _ = loaded(bases_of("resnet"), quantisation="none")
    path.model.train()  # a batch-norm that counted would make parts differ from the whole
    whole = path.collate(encoded[:12])
    parts = path.parts(whole, 20)
    assert len(parts) > 2 and torch.equal(torch.cat([its["labels"] for its in parts]), whole["labels"])
    assert torch.allclose(torch.cat([path.losses(its)[0] for its in parts]), path.losses(whole)[0], atol=1e-5)


def test_several_labels_a_picture(bases_of, home):
    rows = [{**{name: value for name, value in row.items() if name != "label"}, "labels": [["a"], ["a", "b"], []][number % 3]} for number, row in enumerate(ROWS)]
    path, encoded, _, _ = loaded(bases_of("resnet"), rows, quantisation="none")
    assert path.several and path.targets(encoded)[:3].tolist() == [[1, 0], [1, 1], [0, 0]] and np.isfinite(step(path, encoded))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_base_s_sizes_are_its_own(bases_of, home, family):
    """Its convolutions' and linear layers' products counted by hooks, against what the config says."""
    folder = bases_of(family, 0 if family == "dinov2" else 7)
    path, encoded, _, recipe = loaded(folder, quantisation="none")
    counted = {"macs": 0, "linear": 0, "convolved": 0}

    def count(module, inputs, output):
        if isinstance(module, torch.nn.Conv2d):
            counted["macs"] += module.weight.numel() * output.shape[2] * output.shape[3]
        else:
            counted["macs"] += module.weight.numel() * (output.numel() // output.shape[-1])

    model = path.model.get_base_model()
    with path.model.disable_adapter():
        layers = [its for name, its in model.named_modules() if isinstance(its, (torch.nn.Linear, torch.nn.Conv2d)) and "lora" not in name and "classifier" not in name]
        hooks = [its.register_forward_hook(count) for its in layers]
        path.judge(encoded[:1])
        for hook in hooks:
            hook.remove()
    its = sizes.in_folder(folder)
    units = path.sight.units
    linear = sum(layer.weight.numel() for layer in layers if isinstance(layer, torch.nn.Linear))
    assert its.linear + its.odd == linear
    work = its.macs * units if its.macs else (its.linear + its.odd) * units
    assert 0.75 < work / counted["macs"] < 1.15
    lora = sum(p.numel() for name, p in path.model.named_parameters() if "lora_" in name)
    assert its.adapter(recipe) == pytest.approx(lora, rel=0.02)


# How it sees ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config, kind", [
    ({"feature_extractor_type": "ConvNextFeatureExtractor", "crop_pct": 0.875, "resample": 3, "size": 224}, "ConvNext"),
    ({"image_processor_type": "ConvNextImageProcessor", "resample": 3, "size": {"shortest_edge": 384}}, "ConvNext"),
    ({"image_processor_type": "ViTImageProcessor", "size": 224, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}, "ViT"),
    ({"image_processor_type": "BitImageProcessor", "do_center_crop": True, "crop_size": {"height": 224, "width": 224}, "size": {"shortest_edge": 256}, "resample": 3}, "Bit"),
    ({"image_processor_type": "BitImageProcessor", "do_center_crop": True, "crop_size": {"height": 225, "width": 224}, "size": {"shortest_edge": 100}, "resample": 3}, "Bit"),
], ids=["resnet", "convnext 384", "vit", "dinov2", "larger than the picture"])
def test_pictures_are_seen_as_transformers_own_processor_sees_them(tmp_path, config, kind):
    """As microsoft/resnet-18, a ConvNeXt at 384, google/vit-base-patch16-224 and facebook/dinov2-base write it; without torchvision."""
    from importlib import import_module

    config = {"do_resize": True, "do_normalize": True, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], **config}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text("{}")
    seeing.load.cache_clear()
    sight = seeing.load(str(tmp_path))
    theirs = getattr(import_module(f"transformers.models.{kind.lower()}.image_processing_pil_{kind.lower()}"), f"{kind}ImageProcessorPil")
    theirs = theirs(**{name: value for name, value in config.items() if not name.endswith("_type")})
    for width, height in ((300, 200), (201, 333), (64, 64), (97, 400)):
        picture = noise(1, width, height)
        wanted = theirs(picture, return_tensors="np")["pixel_values"][0]
        assert sight.values(sight.framed(picture)).shape == wanted.shape and np.abs(sight.values(sight.framed(picture)) - wanted).max() < 1e-5


@pytest.mark.parametrize("config", [
    None, {}, {"image_processor_type": "CLIPImageProcessor"}, {"image_processor_type": "ViTImageProcessor", "size": 10**9},
    {"image_processor_type": "ViTImageProcessor", "image_std": [0, 0, 0]}, {"image_processor_type": "ViTImageProcessor", "resample": "x"},
    {"image_processor_type": "ViTImageProcessor", "size": {"width": 3}}, {"image_processor_type": "ViTImageProcessor", "rescale_factor": 1e999},
])
def test_a_preprocessor_that_cannot_be_followed_is_refused(tmp_path, config):
    if config is not None:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    seeing.load.cache_clear()
    with pytest.raises(UserError, match="Choose another base model|not known here"):
        seeing.load(str(tmp_path))


# Runs -------------------------------------------------------------------------------------------------------------


def pictured(folder: Path, owner: str = "local", each: int = 14) -> data.Dataset:
    path = shapes_zip(folder / "shapes.zip", each)
    files = [(path, "shapes.zip")]
    dataset = data.create(owner, "Shapes", {"kind": "file"}, files, passing=True)
    data.take(dataset, reading.read(files, [], dataset.folder), [], files=files)
    return data.settle(dataset)


def image_run(base: Path, folder: Path, owner: str = "local", **settings) -> runs.Run:
    recipe = Recipe(**{
        "task": "image_labels", "base_model": "test/small", "learning_rate": 1e-2, "lora_rank": 4, "epochs": 4.0, "batch_size": 8, "held_out_share": 0.25,
        "evaluations": 4, "patience": 0, **settings,
    })
    run = runs.create(owner, recipe, pictured(folder, owner))
    write_json(run.folder / "base.json", base_entry(base))
    return run


@pytest.fixture(scope="module")
def done(tmp_path_factory, one_thread):
    """A TUNER_HOME with a finished run on pictures; to be read only, or copied."""
    from tests.conftest import make_quick

    folder = tmp_path_factory.mktemp("pictured")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNER_HOME", str(folder / "home"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        make_quick(patch)
        going = image_run(small_seer(folder / "base"), folder)
        runs.claim(going)
        assert train.main(going) == 0, going.error()
    return folder / "home"


@pytest.fixture
def run(done, monkeypatch):
    monkeypatch.setenv("TUNER_HOME", str(done))
    return runs.mine("local")[0]


def test_a_run_tells_what_it_learns_and_what_is_frozen(run):
    evals = events(run, "eval")
    assert evals[0]["step"] == 0 and all({"loss", "accuracy", "macro_f1"} <= its.keys() for its in evals)
    assert evals[-1]["loss"] < evals[0]["loss"] and run.state() == "done"
    assert "Nothing of this base is in 4 bits" in notes(run)
    assert events(run, "sample")[-1]["prompt"].endswith(".png")
    quoted = run.read("quote")
    assert quoted["memory_gib"] > 0 and quoted["rehearsed"]["memory_gib"] > 0 and quoted["kind"].endswith("/pictures")


def test_a_run_has_its_pictures_when_the_dataset_is_gone(run):
    rows = run.rows("held_out")
    assert rows and all(pictures.pixels(pictures.content(row["folder"], row["picture"])).shape == (32, 32, 3) for row in rows)
    assert all(Path(row["folder"]) == run.folder / "data" for row in rows)


def test_the_report_is_the_same_when_it_is_made_again(run, quick):
    before = (run.folder / "report.json").read_bytes()
    report.remake(run)
    assert (run.folder / "report.json").read_bytes() == before
    its = json.loads(before)
    held = len(run.rows("held_out"))
    assert sum(map(sum, its["confusion"]["tuned"])) == held and {"majority", "base", "tuned", "difference", "probe", "says"} <= its.keys()
    assert its["probe"]["items"] == 200 and "200 handwritten digits" in its["says"][-1]
    shown = its["rows"]["surest"][0]
    assert shown["text"].endswith(".png") and shown["picture"].startswith("data:image/")


def test_a_killed_run_ends_as_if_it_had_not_been(done, tmp_path, quick, monkeypatch):
    """In the middle of an epoch, with pictures that are varied: bit for bit."""
    monkeypatch.setenv("TUNER_HOME", str(shutil.copytree(done, tmp_path / "home")))
    whole = runs.mine("local")[0]
    other = image_run(Path(whole.read("base")["dir"]), tmp_path)
    die_after(6, other)
    assert other.read("report") is None
    train.train(other)
    assert losses(other) == losses(whole) and adapter_hash(other.adapter_dir) == adapter_hash(whole.adapter_dir)
    assert len(set(losses(whole))) == len(losses(whole))


def test_augmentation_changes_what_is_learned_and_none_does_not(bases_of, home):
    path, encoded, _, _ = loaded(bases_of("resnet"), quantisation="none")
    at = lambda path, epoch: path.collate(path.varied(encoded[:3], [0, 1, 2], epoch))["pixel_values"]  # noqa: E731
    plain = path.collate(encoded[:3])["pixel_values"]
    assert torch.equal(at(path, 0), at(path, 0)) and not torch.equal(at(path, 0), at(path, 1)) and not torch.equal(at(path, 0), plain)
    path, _, _, _ = loaded(bases_of("resnet"), quantisation="none", augmentation="none")
    assert torch.equal(at(path, 0), plain)


def test_the_card_loads_it_and_what_is_published_is_checked(run):
    its = card.build(run, "alice/shapes", "https://example.org/?adapter=alice/shapes")
    assert "pipeline_tag: image-classification" in its and "num_labels=3" in its and "ignore_mismatched_sizes=True" in its and "id2label={0: 'bar'" in its
    assert "AutoImageProcessor" in its and "Held-out rows by their own class" in its
    names = outgoing.files_of(run)
    assert {"adapter_model.safetensors", "config.json", "preprocessor_config.json"} <= set(names) and pictures.STORE not in names
    plan = run.read("plan")
    found = verify.compare({
        "task": "image_labels", "base_dir": run.read("base")["dir"], "own_dir": str(run.adapter_dir), "published_dir": str(run.adapter_dir),
        "precision": plan["precision"], "quantisation": "nf4", "kept_16bit": plan["kept_16bit"], "attention": plan["attention"], "heads": plan["heads"],
        "labels": plan["labels"],
    })
    assert found["prompts"] == 5 and found["moved"] > 0


def test_pictures_that_are_gone_end_a_run_in_words(home, tmp_path, quick, bases_of):
    run = image_run(bases_of("resnet"), tmp_path)
    (run.folder / "data" / pictures.STORE).write_bytes(b"")
    runs.claim(run)
    assert train.main(run) == 1 and "cannot be read any more" in run.error()


def test_rows_for_another_task_are_refused(home, tmp_path):
    with pytest.raises(UserError, match="pictures with labels"):
        runs.create("local", Recipe(), pictured(tmp_path))


def test_a_check_with_a_base_counts_what_pictures_cost(home, tmp_path, bases_of):
    from tuner.scan import Look

    recipe = Recipe(task="image_labels")
    rows = check.work(pictured(tmp_path), Look.of(recipe, bases_of("vit")))
    figures = rows.figures(recipe)
    assert set(figures.lengths.tolist()) == {16} and figures.learned == figures.train_rows


def test_a_base_cannot_be_asked_for_checkpointing_that_it_does_not_have(home, tmp_path, quick, bases_of):
    run = image_run(bases_of("resnet"), tmp_path, gradient_checkpointing="on", epochs=1.0)
    train.train(run)
    assert run.read("plan")["gradient_checkpointing"] is False


