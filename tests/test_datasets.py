"""Folders of pictures: layouts, split, formats, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import save_picture
from PIL import ExifTags, Image

from fixres_poc import datasets
from fixres_poc.config import DatasetSettings, DataSettings, InputError
from fixres_poc.datasets import image_folder
from fixres_poc.datasets.loading import PictureDataset, batches, loader, read_image
from fixres_poc.transforms import get_transforms


def load(folder: Path, **more: object) -> datasets.Pictures:
    return datasets.load(DataSettings(dataset=str(folder), **more))  # type: ignore[arg-type]


def test_a_plain_folder_is_split_per_class(colour_folder: Path) -> None:
    pictures = load(colour_folder)
    assert pictures.classes == ("blue", "green", "red")
    counts = pictures.table.groupby(["label", "split"]).size().unstack()
    assert counts["test"].tolist() == [4, 4, 4]
    assert counts["val"].tolist() == [2, 2, 2]


def test_the_split_depends_on_its_seed_and_not_on_other_classes(colour_folder: Path) -> None:
    before = load(colour_folder).table.set_index("picture")["split"]
    assert not before.equals(load(colour_folder, split_seed=1).table.set_index("picture")["split"])
    for index in range(3):
        save_picture(colour_folder / "violet" / f"{index}.png", (150, 30, 160), seed=900 + index)
    after = load(colour_folder).table.set_index("picture")["split"]
    assert after[before.index].equals(before)


def test_pictures_with_equal_bytes_stay_on_one_side(colour_folder: Path) -> None:
    for index in range(12):
        copy = (colour_folder / "red" / f"{index:02d}.png").read_bytes()
        (colour_folder / "red" / f"copy{index:02d}.png").write_bytes(copy)
    split = load(colour_folder).table.set_index("picture")["split"]
    assert all(split[f"red/{index:02d}.png"] == split[f"red/copy{index:02d}.png"] for index in range(12))


def test_equal_bytes_in_two_classes_stay_on_one_side_too(colour_folder: Path) -> None:
    for index in range(12):
        copy = (colour_folder / "blue" / f"{index:02d}.png").read_bytes()
        (colour_folder / "red" / f"copy{index:02d}.png").write_bytes(copy)
    split = load(colour_folder).table.set_index("picture")["split"]
    assert all(split[f"blue/{index:02d}.png"] == split[f"red/copy{index:02d}.png"] for index in range(12))


def test_classes_may_lie_one_level_down_and_hidden_files_are_passed_over(colour_folder: Path) -> None:
    outer = colour_folder.parent / "outer"
    outer.mkdir()
    colour_folder.rename(outer / "Images")
    (outer / "Images" / "red" / "._00.png").write_bytes(b"finder")
    (outer / "Images" / ".cache").mkdir()
    assert len(load(outer).table) == 36


@pytest.mark.parametrize("val", ["val", "valid", None])
def test_a_split_folder_keeps_its_test_part(tmp_path: Path, val: str | None) -> None:
    for part in filter(None, ["train", "test", val]):
        for label, colour in (("a", (200, 0, 0)), ("b", (0, 200, 0))):
            for index in range(5):
                save_picture(
                    tmp_path / "data" / part / label / f"{index}.jpg", colour, seed=hash((part, label, index)) % 999
                )
    pictures = load(tmp_path / "data")
    assert pictures.counts() == {"train": 10 if val else 8, "val": 10 if val else 2, "test": 10}
    assert all(name.startswith("test/") for name in pictures.split("test")["picture"])


def test_split_folders_may_be_spelt_otherwise(tmp_path: Path) -> None:
    for part in ("Training", "Validation", "Testing"):
        for label, colour in (("a", (200, 0, 0)), ("b", (0, 200, 0))):
            save_picture(tmp_path / "data" / part / label / "0.png", colour, seed=len(part) + len(label))
    assert load(tmp_path / "data").counts() == {"train": 2, "val": 2, "test": 2}


def test_image_limit_keeps_the_shares(colour_folder: Path) -> None:
    limited = load(colour_folder, image_limit=30)
    assert 20 <= len(limited.table) <= 30
    assert limited.table.groupby("label").size().nunique() == 1


def test_the_fingerprint_notices_a_renamed_class_and_an_added_picture(colour_folder: Path) -> None:
    before = load(colour_folder).fingerprint()
    assert load(colour_folder).fingerprint() == before
    (colour_folder / "red").rename(colour_folder / "rouge")
    renamed = load(colour_folder).fingerprint()
    save_picture(colour_folder / "blue" / "new.png", (0, 0, 250), seed=5)
    assert len({before, renamed, load(colour_folder).fingerprint()}) == 3


@pytest.mark.parametrize("place", [0, -1])
@pytest.mark.parametrize("size", [10, 100_000, 300_000])
def test_the_fingerprint_notices_a_picture_replaced_by_one_of_equal_size(
    colour_folder: Path, place: int, size: int
) -> None:
    file = colour_folder / "red" / "00.png"
    content = bytearray(size)
    file.write_bytes(content)
    before = load(colour_folder)
    fingerprint = before.fingerprint()
    content[place] = 1
    file.write_bytes(content)
    assert before.fingerprint() != fingerprint


FORMATS = {"jpg": ("L", "RGB", "CMYK"), "png": ("L", "P", "RGB", "RGBA"), "webp": ("RGB", "RGBA"), "gif": ("P",)}
FORMATS |= {"bmp": ("RGB",), "tif": ("RGB", "CMYK"), "tiff": ("L",), "ppm": ("RGB",)}


@pytest.mark.parametrize(("suffix", "mode"), [(suffix, mode) for suffix, modes in FORMATS.items() for mode in modes])
def test_every_format_and_mode_becomes_rgb(tmp_path: Path, suffix: str, mode: str) -> None:
    path = tmp_path / f"x.{suffix}"
    grey = mode == "L"
    Image.new("RGB", (40, 30), (120, 120, 120) if grey else (200, 100, 40)).convert(mode).save(path)
    image = read_image(path)
    assert image.shape == (3, 30, 40)
    assert image.dtype == torch.uint8
    expected = (120, 120, 120) if grey else (200, 100, 40)
    assert np.abs(image.float().mean((1, 2)).numpy() - expected).max() < 6


@pytest.mark.parametrize(
    ("suffix", "dtype", "values", "expected"),
    [
        ("png", "uint16", (0, 32896, 65535), (0, 128, 255)),
        ("tif", "uint16", (0, 257, 25700), (0, 1, 100)),
        ("tif", "int32", (0, 32896, 65535), (0, 128, 255)),
        ("tif", "float32", (-0.5, 0.2, 1.0), (0, 51, 255)),
        ("tif", "float32", (float("nan"), 128.0, 255.0), (0, 128, 255)),
    ],
)
def test_deep_grey_pictures_are_scaled_and_not_clipped(
    tmp_path: Path, suffix: str, dtype: str, values: tuple[float, ...], expected: tuple[int, ...]
) -> None:
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(np.array([values], dtype)).save(path)
    assert read_image(path).tolist() == [[list(expected)]] * 3


def test_every_accepted_suffix_is_one_that_pillow_reads() -> None:
    assert set(image_folder.SUFFIXES) <= Image.registered_extensions().keys()


def test_files_that_are_passed_over_are_told(
    colour_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_picture(colour_folder / "red" / "12.TIF", (200, 40, 30), seed=1)
    for name in ("a.txt", "b.TXT", "c", ".hidden"):
        (colour_folder / "red" / name).touch()
    datasets.prepare(DataSettings(dataset=str(colour_folder)), tmp_path / "run")
    assert len(pd.read_csv(tmp_path / "run" / "pictures.csv")) == 37
    assert "3 passed over for not being pictures: .txt (2), no suffix (1)" in caplog.text


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_exif_orientation_is_honoured(tmp_path: Path, suffix: str) -> None:
    picture = Image.new("RGB", (40, 20), (255, 255, 255))
    picture.paste((0, 0, 0), (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise: the left half is on top
    picture.save(tmp_path / f"x.{suffix}", exif=exif)
    image = read_image(tmp_path / f"x.{suffix}").float().mean(0)
    assert tuple(image.shape) == (40, 20)
    assert image[:15].mean() < 20
    assert image[25:].mean() > 235


def test_a_jpeg_under_another_name_is_read(tmp_path: Path) -> None:
    Image.new("RGB", (10, 10), (9, 9, 9)).save(tmp_path / "x.jpg", format="PNG")
    assert read_image(tmp_path / "x.jpg").shape == (3, 10, 10)


def test_broken_pictures_are_named_before_anything_is_trained(colour_folder: Path, tmp_path: Path) -> None:
    broken = colour_folder / "red" / "03.png"
    broken.write_bytes(broken.read_bytes()[:500])
    (colour_folder / "blue" / "05.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"05\.png: not a readable picture .*, and 1 more like it"):
        datasets.prepare(DataSettings(dataset=str(colour_folder)), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match=r"03\.png: not a readable picture"):
        read_image(broken)


def sweep_settings(folder: Path) -> DatasetSettings:
    return DatasetSettings(dataset=str(folder), sweep="x")


def test_unreadable_pictures_are_left_out_on_demand_and_move_no_other(colour_folder: Path, own_home: Path) -> None:
    settings, run = sweep_settings(colour_folder), own_home / "runs" / "x"
    before = datasets.load(settings).table.set_index("picture")["split"]
    content = (colour_folder / "red" / "03.png").read_bytes()
    (colour_folder / "red" / "03.png").write_bytes(content[:200])
    with pytest.raises(InputError, match=r"03\.png: not a readable .* let the sweep file say skip_unreadable: true"):
        datasets.prepare(settings, run)
    whole = load(colour_folder).table.set_index("picture")["split"]
    first = datasets.prepare(settings, run, skip_unreadable=True)
    pictures = datasets.load(settings)
    assert pictures.fingerprint() == first
    assert pictures.table.set_index("picture")["split"].equals(whole.drop("red/03.png"))
    assert whole.drop("red/03.png").value_counts().sum() == len(before) - 1
    record = json.loads((run / "pictures.json").read_text())
    assert record["unreadable"]["red/03.png"].startswith("not a readable picture (")
    assert len(pd.read_csv(run / "pictures.csv")) == sum(pictures.counts().values()) == 35
    assert len(load(colour_folder).table) == 36  # a notebook opened by hand knows nothing of that sweep
    with pytest.raises(InputError, match="skip_unreadable"):
        datasets.prepare(settings, run)
    (colour_folder / "red" / "03.png").write_bytes(content)
    assert datasets.prepare(settings, run) != first
    assert datasets.load(settings).table.set_index("picture")["split"].equals(before)


def test_left_out_pictures_are_told_each_time(
    colour_folder: Path, own_home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (colour_folder / "red" / "03.png").write_bytes(b"")
    for _ in range(2):
        caplog.clear()
        datasets.prepare(sweep_settings(colour_folder), own_home / "runs" / "x", skip_unreadable=True)
        assert "1 unreadable pictures are left out; " in caplog.text


def test_a_class_without_a_readable_picture_in_a_split_is_refused(colour_folder: Path, own_home: Path) -> None:
    for part in ("train", "val", "test"):
        for label in ("a", "b"):
            save_picture(colour_folder.parent / "split" / part / label / "0.png", (9, 9, 200), seed=len(part + label))
    (colour_folder.parent / "split/val/b/0.png").write_bytes(b"")
    with pytest.raises(InputError, match="class 'b' has no readable picture left in val"):
        datasets.prepare(sweep_settings(colour_folder.parent / "split"), own_home / "runs" / "x", skip_unreadable=True)


def test_prepare_writes_the_table_once(colour_folder: Path, tmp_path: Path) -> None:
    settings = DataSettings(dataset=str(colour_folder))
    first = datasets.prepare(settings, tmp_path / "run")
    assert first == datasets.load(settings).fingerprint()
    table = pd.read_csv(tmp_path / "run" / "pictures.csv")
    assert set(table["width"]) == {72}
    assert set(table["height"]) == {56}
    assert json.loads((tmp_path / "run" / "pictures.json").read_text())["classes"] == ["blue", "green", "red"]
    stamp = (tmp_path / "run" / "pictures.csv").stat().st_mtime_ns
    assert datasets.prepare(settings, tmp_path / "run") == first
    assert (tmp_path / "run" / "pictures.csv").stat().st_mtime_ns == stamp


def test_folders_that_cannot_be_used_are_named(tmp_path: Path, colour_folder: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no pictures found"):
        load(tmp_path / "empty")
    save_picture(colour_folder / "lone" / "0.png", (1, 2, 3), seed=1)
    with pytest.raises(InputError, match=r"class 'lone' .* has 1 different picture;"):
        load(colour_folder)


def test_augmentation_is_a_function_of_seed_epoch_and_picture(colour_folder: Path) -> None:
    pictures = load(colour_folder)
    train = get_transforms(32, 32, need=["train"])["train"]
    data = PictureDataset(pictures, "train", train, seed=3)
    state = torch.random.get_rng_state()
    first = data[2][0]
    assert torch.equal(state, torch.random.get_rng_state())
    torch.manual_seed(99)
    assert torch.equal(data[2][0], first)
    data.epoch = 1
    assert not torch.equal(data[2][0], first)
    assert not torch.equal(PictureDataset(pictures, "train", train, seed=4)[2][0], first)


def test_training_batches_are_shuffled_alike_and_evaluation_batches_in_order(colour_folder: Path) -> None:
    pictures = load(colour_folder)
    plain = get_transforms(32, 32, need=["val"])["val_test"]
    train = PictureDataset(pictures, "train", plain, seed=0)
    order = [index for _, _, rows in loader(train, batches(train, 4)) for index in rows.tolist()]
    assert order == [index for _, _, rows in loader(train, batches(train, 4), workers=2) for index in rows.tolist()]
    assert order != sorted(order)
    assert sorted(order) == list(range(len(train)))
    test = PictureDataset(pictures, "test", plain)
    assert [index for _, _, rows in loader(test, batches(test, 5)) for index in rows.tolist()] == list(range(len(test)))


def test_a_batch_is_its_pictures_one_by_one(colour_folder: Path) -> None:
    transforms = get_transforms(32, 40, view="five_crop")
    for name, seed in (("train", 3), ("val_train", 3), ("val_test", None)):
        data = PictureDataset(load(colour_folder), "train", transforms[name], seed)
        rows = [4, 0, 7]
        images, labels, numbers = data.__getitems__(rows)
        assert torch.equal(images, torch.stack([data[row][0] for row in rows]))
        assert images.dtype == torch.float32
        if seed is None:
            files = [data.root / data.names[row] for row in rows]
            assert torch.equal(images, torch.stack([transforms[name](read_image(file)) for file in files]))
        assert labels.tolist() == [data.labels[row] for row in rows]
        assert numbers.tolist() == rows


def test_headers_tell_the_sizes_that_decoding_tells(tmp_path: Path) -> None:
    for orientation in (1, 3, 6, 8):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        for number in range(3):
            file = tmp_path / "pictures" / f"{orientation}" / f"{number}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (30 + number, 20), (number, 0, orientation)).save(file, exif=exif)
    pictures = load(tmp_path / "pictures")
    pd.testing.assert_frame_equal(datasets.sizes(pictures, decode=False), datasets.sizes(pictures))
    assert set(datasets.sizes(pictures)["width"]) == {20, 30, 31, 32}


def test_boxes_come_from_where_they_are_known(colour_folder: Path) -> None:
    drawn = DataSettings(image_limit=30)
    boxes = datasets.boxes(drawn, datasets.load(drawn), most=4)
    assert boxes is not None
    assert len(boxes) == 4
    assert datasets.boxes(DataSettings(dataset=str(colour_folder)), load(colour_folder)) is None
