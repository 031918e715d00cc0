"""Tests of strangers' pictures: what is taken, what is refused before it is decoded, what is nearly the same, and how they come out of files."""

import io
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.drawn import coded, noise, shapes_zip, zipped
from tuner import check, data, findings, fixes, looks, pictures, reading, reading_pictures, tasks, variation
from tuner.errors import UserError
from tuner.recipe import Recipe
from tuner.seeing import Sight

RECIPE = Recipe(task="image_labels")


def faults(content: bytes, name: str = "") -> set[str]:
    return set(pictures.take(content, name).faults)


def refused(content: bytes, name: str = "") -> str:
    with pytest.raises(pictures.NoPicture) as refusal:
        pictures.take(content, name)
    return refusal.value.kind


# Taking one -------------------------------------------------------------------------------------------------------


def test_a_plain_picture_is_kept_pixel_by_pixel():
    its = pictures.take(coded(noise(1)), "a.png")
    assert its.faults == () and (its.width, its.height) == its.original == (80, 60)
    assert np.array_equal(pictures.pixels(its.content), np.asarray(noise(1)))


def test_nothing_but_pixels_is_kept():
    """A photograph says where and when it was taken, and may hold a second picture, a profile, a comment."""
    exif = Image.Exif()
    exif[0x010E] = "taken at home"
    content = coded(noise(2, 900, 700), "JPEG", exif=exif, comment=b"a secret", icc_profile=b"x" * 300)
    its = pictures.take(content, "a.jpg")
    assert b"home" in content and b"secret" in content
    assert b"home" not in its.content and b"secret" not in its.content and not Image.open(io.BytesIO(its.content)).getexif()
    assert (its.width, its.height) == (494, 384) and its.original == (900, 700)


@pytest.mark.parametrize("turn", [2, 3, 4, 5, 6, 7, 8])
def test_a_picture_lies_as_its_camera_says(turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    its = pictures.take(coded(noise(3), "JPEG", exif=exif, quality=95))
    assert its.faults == ("turned",) and (its.width, its.height) == ((60, 80) if turn > 4 else (80, 60))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[turn]  # Pillow's names for the way back
    back = Image.fromarray(pictures.pixels(its.content)).transpose(undo)
    assert np.abs(np.asarray(back, int) - np.asarray(noise(3), int)).mean() < 4


def test_what_is_odd_is_told():
    one = noise(4)
    assert faults(coded(one.convert("CMYK"), "JPEG")) == {"cmyk"}
    assert faults(coded(one, "GIF", save_all=True, append_images=[noise(5)])) == {"animated"}
    assert faults(coded(one, "WEBP", save_all=True, append_images=[noise(5)])) == {"animated"}
    assert faults(coded(one), "a.jpg") == {"misnamed"} and faults(coded(one, "JPEG"), "a.JPG") == set()
    assert faults(coded(noise(6, 8, 8))) == {"tiny"}
    assert faults(coded(noise(7, 400, 60))) == {"stretched"}
    assert faults(coded(Image.new("L", (6_000, 4_001), 9))) == {"huge"}
    deep = Image.fromarray((np.arange(60 * 80).reshape(60, 80) * 13).astype(np.uint16))
    assert faults(coded(deep)) == {"deep"} and faults(coded(deep, "TIFF")) == {"deep"}


def test_sixteen_bits_of_colour_are_told_though_pillow_drops_them_in_silence():
    rows = b"".join(b"\0" + bytes(6 * 40) for _ in range(40))
    chunk = lambda name, its: struct.pack(">I", len(its)) + name + its + struct.pack(">I", zlib.crc32(name + its))  # noqa: E731
    head = struct.pack(">IIBBBBB", 40, 40, 16, 2, 0, 0, 0)
    assert faults(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")) == {"deep"}


def test_a_sensors_twelve_bits_are_not_black():
    ramp = (np.linspace(0, 4095, 80)[None].repeat(60, 0)).astype(np.uint16)
    its = pictures.pixels(pictures.take(coded(Image.fromarray(ramp), "TIFF")).content)
    assert its.min() == 0 and its.max() == 255


def test_what_one_can_see_through_lies_on_white():
    its = Image.new("RGBA", (40, 40), (255, 0, 0, 0))
    assert (pictures.pixels(pictures.take(coded(its)).content) == 255).all()
    palette = Image.new("P", (40, 40), 0)
    assert (pictures.pixels(pictures.take(coded(palette, "GIF", transparency=0)).content) == 255).all()


def test_bombs_are_refused_before_they_are_decoded(monkeypatch):
    """By the size that the file claims, whatever stands behind it."""
    chunk = lambda name, its: struct.pack(">I", len(its)) + name + its + struct.pack(">I", zlib.crc32(name + its))  # noqa: E731
    for width, height in ((60_000, 60_000), (8_001, 8_000)):
        head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        with monkeypatch.context() as patch:
            patch.setattr(Image.Image, "load", lambda self: pytest.fail("it was decoded"))
            assert refused(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")) == "bomb"
    monkeypatch.setattr(pictures, "MOST_BYTES", 1000)
    assert refused(coded(noise(1))) == "too_large_picture"


@pytest.mark.parametrize("content, said", [
    (b"<html><body>Not found</body></html>", "a web page"), (b"%PDF-1.7", "a PDF"), (b"<svg xmlns=''/>", "an SVG"), (b"PK\x03\x04", "a zip"),
    (b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer"), (b"\0\0\0\x18ftypheic", "HEIC"), (b"\0\0\0\x18ftypavif", "AVIF"), (b"%!PS-Adobe", "PostScript"),
    (b"just words", "no picture"),
])
def test_what_is_no_picture_is_named(content, said):
    with pytest.raises(pictures.NoPicture, match=said) as refusal:
        pictures.take(content, "a.jpg")
    assert refusal.value.kind == "not_a_picture"


def test_what_is_damaged_is_refused():
    whole = coded(noise(8, 300, 200), "JPEG")
    assert {refused(whole[: len(whole) // 2]), refused(whole[:30]), refused(b""), refused(coded(noise(8))[:200])} == {"broken_picture"}


def test_damage_of_any_kind_is_refused_or_read_and_nothing_else():
    """Bytes of each kind of file are changed at random; Pillow's readers raise a dozen kinds of errors."""
    random, seen = np.random.default_rng(0), set()
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"):
        whole = np.frombuffer(coded(noise(9, 64, 48), kind), np.uint8)
        for _ in range(40):
            its = whole.copy()
            its[random.integers(0, len(its), 8)] = random.integers(0, 256, 8)
            try:
                pictures.take(its.tobytes())
                seen.add("read")
            except pictures.NoPicture as refusal:
                seen.add(refusal.kind)
    assert {"read", "broken_picture"} <= seen <= {"read", "broken_picture", "not_a_picture", "bomb", "too_large_picture"}


def test_a_picture_passes_between_processes_as_it_is():
    its = pictures.take(coded(noise(1)), "a.jpg")
    assert pictures.Taken.of_json(its.to_json()) == its


def test_a_thumbnail_is_small_whatever_it_is_of():
    for width, height in ((8, 8), (2_000, 900), (33, 500)):
        its = Image.open(io.BytesIO(pictures.thumbnail(pictures.take(coded(noise(1, width, height))).content)))
        assert 60 < max(its.size) <= 160


# Nearly the same --------------------------------------------------------------------------------------------------


def group(pictured: list[Image.Image]) -> list[int]:
    said = [looks.of(its) for its in pictured]
    return looks.groups(looks.band_keys(said, looks.common(said)).T, said.__getitem__, looks.common(said)).tolist()


def test_copies_are_near_and_others_are_not():
    """Smaller, brighter, saved again, cut a little: near. Mirrored, in other colours, another picture: not."""
    from PIL import ImageEnhance

    one = noise(20, 400, 300)
    saved = Image.open(io.BytesIO(coded(one, "JPEG", quality=40)))
    copies = [one, one.resize((200, 150)), ImageEnhance.Brightness(one).enhance(1.15), saved, one.crop((6, 5, 394, 295))]
    assert group(copies) == [0] * len(copies)
    red, green, blue = one.split()
    others = [one, one.transpose(0), one.rotate(90), noise(21, 400, 300), Image.merge("RGB", [blue, red, green])]
    assert group(others) == list(range(len(others)))


def test_a_chain_of_small_changes_joins_no_unlike_pictures():
    """Each is near the next; what is compared is the first of the group."""
    one, last = (np.asarray(noise(seed, 200, 200), float) for seed in (22, 23))
    chain = [Image.fromarray((one + (last - one) * share).astype(np.uint8)) for share in np.linspace(0, 1, 12)]
    found = group(chain)
    assert found[0] != found[-1] and len(set(found)) < len(found)


def test_pictures_of_one_shade_are_near_nothing():
    assert group([Image.new("RGB", (50, 50), colour) for colour in ("white", "white", "black", "red")]) == [0, 1, 2, 3]


def test_many_pictures_are_compared_in_blocks_as_in_one(monkeypatch):
    said = [looks.of(noise(seed // 2, 40 + seed % 2 * 30, 40)) for seed in range(60)]
    keys = looks.band_keys(said, None).T
    whole = looks.groups(keys, said.__getitem__, None)
    monkeypatch.setattr(looks, "_BLOCK", 7)
    assert looks.groups(keys, said.__getitem__, None).tolist() == whole.tolist() and len(set(whole.tolist())) < 60


# Out of files -----------------------------------------------------------------------------------------------------


def kept(home, files, **more) -> data.Dataset:
    """A dataset of these files, read here."""
    dataset = data.create("local", "pictures", {"kind": "file"}, files, passing=True)
    notes = []
    data.take(dataset, reading.read(files, notes, dataset.folder), notes, files=files)
    return data.settle(dataset)


def labels_of(dataset) -> dict[str, str]:
    rows, _ = data.to_rows(dataset.head(), dataset.mapping, dataset.task)
    return {row["file"]: row["label"] for row in rows}


def test_a_zip_with_a_folder_for_each_class(home, tmp_path):
    path = zipped(tmp_path / "a.zip", {
        "flowers/rose/1.png": coded(noise(1)), "flowers/rose/deep/2.jpg": coded(noise(2), "JPEG"), "flowers/tulip/1.png": coded(noise(3)),
        "flowers/tulip/notes.md": b"x", "__MACOSX/flowers/rose/._1.png": b"x", "flowers/.DS_Store": b"x",
    })
    dataset = kept(home, [(path, "a.zip")])
    assert dataset.task == "image_labels" and dataset.mapping.format == "pictures"
    assert labels_of(dataset) == {"flowers/rose/1.png": "rose", "flowers/rose/deep/2.jpg": "rose", "flowers/tulip/1.png": "tulip"}
    assert "name of its folder: 2 classes" in " ".join(dataset.notes)
    entry = dataset.head()[0]["image"]
    assert np.array_equal(pictures.pixels(pictures.content(dataset.folder, entry)), np.asarray(noise(1)))


def test_folders_may_say_the_split():
    found = reading_pictures.by_folder(["set/train/cat/1.png", "set/train/dog/2.png", "set/test/cat/3.png", "set/test/dog/sub/4.png"])
    assert {(path[4:], label, split) for path, label, split in found} == {
        ("train/cat/1.png", "cat", "train"), ("train/dog/2.png", "dog", "train"), ("test/cat/3.png", "cat", "test"), ("test/dog/sub/4.png", "dog", "test"),
    }


def test_the_first_rows_are_of_all_classes():
    found = reading_pictures.by_folder([f"{label}/{n}.png" for label in "abc" for n in range(50)])
    assert [label for _, label, _ in found[:6]] == ["a", "b", "c"] * 2


def test_one_folder_is_one_class_and_none_is_no_label():
    assert {label for _, label, _ in reading_pictures.by_folder(["cats/1.png", "cats/2.png"])} == {"cats"}
    assert {label for _, label, _ in reading_pictures.by_folder(["1.png", "2.png"])} == {""}


@pytest.mark.parametrize("table", ["metadata.csv", "labels.jsonl"])
def test_a_table_names_files_and_labels(home, tmp_path, table):
    rows = [("a/1.png", "cat"), ("2.png", "dog"), ("gone.png", "cat")]
    text = "file_name,label\n" + "".join(f"{name},{label}\n" for name, label in rows)
    if table.endswith("jsonl"):
        text = "".join(f'{{"file_name": "{name}", "label": "{label}"}}\n' for name, label in rows)
    path = zipped(tmp_path / "a.zip", {"x/a/1.png": coded(noise(1)), "x/b/2.png": coded(noise(2)), "x/b/3.png": coded(noise(3)), f"x/{table}": text.encode()})
    dataset = kept(home, [(path, "a.zip")])
    rows, left_out = data.to_rows(dataset.head(), dataset.mapping, dataset.task)
    assert {row["file"]: row["label"] for row in rows} == {"x/a/1.png": "cat", "x/b/2.png": "dog"}
    assert [its["kind"] for its in left_out] == ["missing_picture"] and "gone.png" in left_out[0]["why"]
    assert any("1 of the 3 pictures are named by no row" in note for note in dataset.notes)


def test_texts_with_a_stray_picture_stay_texts(home, tmp_path):
    rows = "".join(f'{{"prompt": "q {n}", "completion": "a {n}"}}\n' for n in range(9))
    path = zipped(tmp_path / "a.zip", {"rows.jsonl": rows.encode(), "logo.png": coded(noise(1))})
    dataset = kept(home, [(path, "a.zip")])
    assert dataset.task == "chat" and dataset.count == 9 and any("no row names" in note for note in dataset.notes)


def test_parquet_with_pictures_and_named_classes(home, tmp_path):
    """As the Hub's datasets have it: bytes with a path, and numbers whose names stand in the schema."""
    import json

    import pyarrow as pa
    import pyarrow.parquet as pq

    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["cat", "dog"]}}
    table = pa.table({
        "image": [{"bytes": coded(noise(n)), "path": f"{n}.png"} for n in range(4)] + [{"bytes": b"nothing", "path": "x.png"}], "label": [0, 1, 1, -1, 0],
    }).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, tmp_path / "a.parquet")
    dataset = kept(home, [(tmp_path / "a.parquet", "a.parquet")])
    rows, left_out = data.to_rows(dataset.head(), dataset.mapping, dataset.task)
    assert [row["label"] for row in rows] == ["cat", "dog", "dog"] and [its["kind"] for its in left_out] == ["no_label", "not_a_picture"]
    bare = pa.table({"photo": [coded(noise(n)) for n in range(3)], "kind": ["a", "b", "a"], "other": [b"\1\2", b"", None]})
    pq.write_table(bare, tmp_path / "b.parquet")
    dataset = kept(home, [(tmp_path / "b.parquet", "b.parquet")])
    assert dataset.mapping.columns == {"image": "photo", "label": "kind"} and dataset.head()[0]["other"] == "<2 bytes>"


@pytest.mark.parametrize("name", ["../out.png", "/etc/out.png", "a/../../out.png", "C:\\out.png"])
def test_a_zip_that_leads_out_is_refused(home, tmp_path, name):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo(name), coded(noise(1)))
    with pytest.raises(UserError, match="leads out of its folder"):
        kept(home, [(path, "a.zip")])


def test_a_zip_bomb_of_pictures_is_refused(home, tmp_path, monkeypatch):
    """What unpacks without end is no picture, and is not read to its end."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for label in "ab":
            archive.writestr(f"{label}/1.png", coded(noise(1)))
        archive.writestr("a/bomb.png", bytes(pictures.MOST_BYTES + 1))
    dataset = kept(home, [(tmp_path / "a.zip", "a.zip")])
    _, left_out = data.to_rows(dataset.head(), dataset.mapping, dataset.task)
    assert [its["kind"] for its in left_out] == ["too_large_picture"]


def test_what_a_stranger_writes_into_a_row_points_nowhere(home):
    """A row that looks like a kept picture is words."""
    forged = {"image": {"at": 0, "bytes": 10**12, "sha": "00"}, "label": "cat"}
    dataset = data.create("local", "forged", {"kind": "paste"})
    data.take(dataset, iter([forged, {"image": {"no_picture": "bomb", "why": "x"}, "label": "dog"}]), [])
    assert all(isinstance(record["image"], str) for record in dataset.head())
    assert tasks.recognise(dataset.head())[0] != "image_labels"
    is_row = tasks.get("image_labels").is_row
    good = {"picture": {"at": 0, "bytes": 10, "sha": "ab", "look": ""}, "label": "cat"}
    assert is_row(good)
    for wrong in ({"at": -1}, {"bytes": 10**12}, {"sha": "../../x"}, {"at": "0"}, {"look": "zz"}):
        assert not is_row({**good, "picture": {**good["picture"], **wrong}})


# Findings ---------------------------------------------------------------------------------------------------------


def test_findings_and_their_fixes(home, tmp_path):
    copy = noise(1).resize((160, 120))
    files = {f"{label}/{n}.png": coded(noise(100 * at + n)) for at, label in enumerate(("cat", "dog")) for n in range(8)}
    files |= {
        "cat/copy.jpg": coded(copy, "JPEG", quality=90), "dog/same.png": coded(noise(2)), "dog/broken.png": coded(noise(50))[:150], "dog/page.png": b"<html>",
        "bird/only.png": coded(noise(60)),
    }
    dataset = kept(home, [(zipped(tmp_path / "a.zip", files), "a.zip")])
    rows = check.work(dataset, None)
    assert len(rows) == 19
    found = {its.name: its.rows for its in findings.find(rows, RECIPE)}
    assert found == {**found, "broken_picture": 1, "not_a_picture": 1, "two_labels": 2, "near_duplicate": 2, "rare_label": 1}
    hit = np.flatnonzero(rows.mask("near_duplicate", RECIPE))
    assert {rows.row(int(index))["file"] for index in hit} <= {"cat/copy.jpg", "cat/1.png", "cat/2.png", "dog/same.png"}
    dataset.steps.append(fixes.step("two_labels", "drop", RECIPE, ""))
    assert len(check.work(dataset, None)) == 17


def test_near_pictures_stay_on_one_side_of_the_split(home, tmp_path):
    files = {f"{label}/{n}{turn}.jpg": coded(noise(100 * at + n).resize((80 + 40 * turn, 60 + 30 * turn)), "JPEG", quality=90) for at, label in enumerate("ab") for n in range(12) for turn in range(2)}
    rows = check.work(kept(home, [(zipped(tmp_path / "a.zip", files), "a.zip")]), None)
    held, _ = rows.held_out(0.25, 0)
    sides = {}
    for index in range(len(rows)):
        sides.setdefault(rows.row(index)["file"][:-5], set()).add(bool(held[index]))
    assert all(len(side) == 1 for side in sides.values()) and 0 < held.sum() < len(rows)


def test_a_near_copy_across_the_source_s_own_split_is_told(home, tmp_path):
    files = {f"{split}/{label}/{n}.png": coded(noise(1000 * (split == "test") + 100 * at + n)) for split in ("train", "test") for at, label in enumerate("ab") for n in range(6)}
    files["test/a/copy.jpg"] = coded(noise(3).resize((120, 90)), "JPEG")
    rows = check.work(kept(home, [(zipped(tmp_path / "a.zip", files), "a.zip")]), None)
    found = {its.name: its.rows for its in findings.find(rows, RECIPE)}
    assert found["near_leak"] == 1 and rows.own_split


def test_a_large_zip_is_read_in_a_child_that_may_be_killed(home, tmp_path):
    """The page's process decodes nothing: it asks a child, and says its words."""
    import shutil

    shapes_zip(tmp_path / "a.zip")
    shutil.copyfile(tmp_path / "a.zip", tmp_path / "b.zip")
    dataset = data.create("local", "a.zip", {"kind": "file"}, [(tmp_path / "b.zip", "a.zip")])
    check.wait_for_head(dataset)
    dataset = data.settle(data.find("local", dataset.id))
    assert dataset.task == "image_labels" and dataset.count == 36 and (dataset.folder / pictures.STORE).stat().st_size > 1000


# Variation --------------------------------------------------------------------------------------------------------

SIGHT = Sight((40, 40), None, None, 2, 1 / 255, (0.5,) * 3, (0.5,) * 3)


def varied(how: str, seed: int = 0, epoch: int = 0, row: int = 0, of: int = 30) -> np.ndarray:
    return np.asarray(variation.varied(noise(of), SIGHT, how, seed, epoch, row))


def test_variations_are_the_same_for_the_same_seed_epoch_and_row_only():
    one = varied("careful")
    assert np.array_equal(one, varied("careful"))
    for other in (dict(seed=1), dict(epoch=1), dict(row=1)):
        assert not np.array_equal(one, varied("careful", **other))
    assert np.array_equal(varied("none", epoch=1), np.asarray(SIGHT.framed(noise(30))))


def test_careful_never_mirrors_and_mirrored_does_so_half_of_the_time():
    """Half the picture is white: on which side it stays is seen through every turn and cut."""
    half = np.zeros((60, 60, 3), np.uint8)
    half[:, 30:] = 255
    side = lambda how, row: np.asarray(variation.varied(Image.fromarray(half), SIGHT, how, 0, 0, row))[:, 20:].mean() > 127  # noqa: E731
    assert all(side("careful", row) for row in range(60))
    assert 15 < sum(side("mirrored", row) for row in range(60)) < 45


def test_variations_stay_close_to_the_picture():
    plain = np.asarray(SIGHT.framed(noise(30)), float)
    apart = [np.corrcoef(varied("careful", row=row).ravel(), plain.ravel())[0, 1] for row in range(20)]
    assert min(apart) > 0.4 and np.mean(apart) > 0.65 and max(apart) < 0.999


def test_a_picture_that_never_ends_is_told_as_one(home, tmp_path, monkeypatch):
    """The child that reads is ended by the system; its exit code and what it was at say why."""
    import shutil
    from types import SimpleNamespace

    from tuner import child
    from tuner.home import write_json

    shapes_zip(tmp_path / "a.zip", 2)
    shutil.copyfile(tmp_path / "a.zip", tmp_path / "b.zip")
    dataset = data.create("local", "a.zip", {"kind": "file"}, [(tmp_path / "b.zip", "a.zip")])
    write_json(dataset.folder / "process.json", {"pid": 2**22 + 1, "started": 0.0})
    monkeypatch.setitem(check._children, 2**22 + 1, SimpleNamespace(poll=lambda: child.OUT_OF_TIME))
    with pytest.raises(UserError, match="A picture takes longer to decode"):
        check.progress(dataset)


def test_what_was_put_right_can_be_written_and_read_again(home, tmp_path):
    """As a zip with a table, since fixes change labels and sides, not folders."""
    path = shapes_zip(tmp_path / "a.zip", 3)
    rows = check.work(kept(home, [(path, "a.zip")]), None)
    tasks.get("image_labels").write_out(rows, tmp_path / "out.zip")
    again = kept(home, [(tmp_path / "out.zip", "out.zip")])
    assert sorted(labels_of(again).values()) == sorted(labels_of(kept(home, [(path, "a.zip")])).values()) and len(check.work(again, None)) == 9
    with pytest.raises(UserError, match="does not end in .zip"):
        tasks.get("image_labels").write_out(rows, tmp_path / "out.jsonl")


def test_each_split_may_have_its_own_table(home, tmp_path):
    """As the Hub's folders of pictures have it: train/metadata.jsonl beside train's pictures."""
    files = {}
    for split, seeds in (("train", range(4)), ("test", range(10, 12))):
        files |= {f"{split}/{seed}.png": coded(noise(seed)) for seed in seeds}
        files[f"{split}/metadata.jsonl"] = "".join(f'{{"file_name": "{seed}.png", "label": "{"ab"[seed % 2]}"}}\n' for seed in seeds).encode()
    rows = check.work(kept(home, [(zipped(tmp_path / "a.zip", files), "a.zip")]), None)
    assert len(rows) == 6 and rows.own.tolist().count(2) == 2 and rows.own_split
