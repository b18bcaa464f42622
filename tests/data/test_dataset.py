"""The table of a dataset's images, its fingerprint, and the search for broken images."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import load, save_image

from fixres_poc.config.errors import InputError
from fixres_poc.config.settings import DataSettings, ExtraTest
from fixres_poc.data.dataset import load_dataset, object_boxes, prepare_dataset


def test_the_fingerprint_notices_any_change(colour_folder: Path) -> None:
    new = colour_folder / "blue" / "new.png"
    fingerprints = [load(colour_folder).fingerprint()]
    for change in (
        lambda: (colour_folder / "red").rename(colour_folder / "rouge"),
        lambda: save_image(new, (0, 0, 250), seed=5),
        lambda: new.write_bytes(new.read_bytes()[:-1] + b"x"),
    ):
        change()
        fingerprints.append(load(colour_folder).fingerprint())
    assert len({*fingerprints}) == 4


def test_unreadable_images_are_left_out_on_demand(
    colour_folder: Path, own_home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings, run = DataSettings(dataset=str(colour_folder)), own_home / "runs" / "x"
    table, broken = run / "images.csv", ["blue/05.png", "red/03.png"]
    before = load(colour_folder).table.set_index("image")["split"]
    contents = {colour_folder / name: (colour_folder / name).read_bytes() for name in broken}
    for file, content in contents.items():
        file.write_bytes(content[:200])
    message = (
        r"05\.png: not a readable image .*, and 1 more \(red/03\.png\).* say skip_unreadable: true"
    )
    with pytest.raises(InputError, match=message):
        prepare_dataset(settings, run)
    assert not run.exists()
    whole = load(colour_folder).table.set_index("image")["split"]
    first, again = (prepare_dataset(settings, run, skip_unreadable=True) for _ in range(2))
    assert caplog.text.count("2 unreadable images are left out; ") == 2
    data = load_dataset(settings, "x")
    assert data.fingerprint() == first == again
    assert data.table.set_index("image")["split"].equals(whole.drop(broken))  # they move no other
    record = json.loads((run / "images.json").read_text())
    assert record["unreadable"]["red/03.png"].startswith("not a readable image (")
    assert len(pd.read_csv(table)) == sum(data.counts().values()) == 34
    # a notebook opened by hand knows nothing of that sweep
    assert len(load(colour_folder).table) == 36
    with pytest.raises(InputError, match="skip_unreadable"):
        prepare_dataset(settings, run)
    for file, content in contents.items():
        file.write_bytes(content)
    restored = prepare_dataset(settings, run)
    assert load_dataset(settings, "x").table.set_index("image")["split"].equals(before)
    stamp = table.stat().st_mtime_ns
    assert prepare_dataset(settings, run) == restored != first
    assert table.stat().st_mtime_ns == stamp, "it is written once"
    table.write_text("image\nblue/05.png\n", encoding="utf-8")
    assert prepare_dataset(settings, run) == restored
    assert set(pd.read_csv(table)["width"]) == {72}


def test_a_class_without_a_readable_image_in_a_split_is_refused(tmp_path: Path) -> None:
    for part in ("train", "val", "test"):
        for label in ("a", "b"):
            save_image(tmp_path / "split" / part / label / "0.png", (9, 9, 200), seed=len(part))
    (tmp_path / "split" / "val" / "b" / "0.png").write_bytes(b"")
    settings = DataSettings(dataset=str(tmp_path / "split"))
    with pytest.raises(InputError, match="class 'b' has no readable image left in val"):
        prepare_dataset(settings, tmp_path / "run", skip_unreadable=True)


@pytest.fixture
def extra(colour_folder: Path, tmp_path: Path) -> DataSettings:
    """The colours with a second test part: three images of two classes, and one of another."""
    for seed, name in enumerate(["red/b.png", "red/a.png", "blue/00.png", "pink/0.png"]):
        save_image(tmp_path / "more" / name, (99, 99, 99), seed)
    return DataSettings(
        dataset=str(colour_folder),
        extra_test=ExtraTest(name="unseen", folder=str(tmp_path / "more")),
    )


def changed(settings: DataSettings, **values: object) -> DataSettings:
    """With another extra part."""
    assert settings.extra_test is not None
    other = settings.extra_test.model_copy(update=values)
    return settings.model_copy(update={"extra_test": other})


def test_an_extra_test_part_is_a_split_of_the_known_classes(
    extra: DataSettings, colour_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data, plain = load_dataset(extra), load(colour_folder)
    assert "more: left out, as there are no such classes: pink" in caplog.text
    assert data.test_parts == ["test", "unseen"] != plain.test_parts
    assert data.counts() == plain.counts() | {"unseen": 3}
    assert data.table.iloc[:36].equals(plain.table)
    rows = data.split("unseen")
    assert rows["image"].tolist() == ["unseen/blue/00.png", "unseen/red/a.png", "unseen/red/b.png"]
    assert [data.classes[label] for label in rows["label"]] == ["blue", "red", "red"]
    paths = [colour_folder / name for name in plain.table["image"]]
    names = ("blue/00.png", "red/a.png", "red/b.png")
    assert data.paths == paths + [tmp_path / "more" / name for name in names]


def test_an_extra_part_is_prepared_and_has_a_digest_of_its_own(
    extra: DataSettings, tmp_path: Path
) -> None:
    def record() -> dict[str, Any]:
        prepare_dataset(extra, tmp_path / "run")
        return dict(json.loads((tmp_path / "run" / "images.json").read_text()))

    before, file = record(), tmp_path / "more" / "red" / "a.png"
    save_image(file, (99, 99, 99), seed=7)
    after = record()
    assert before["fingerprint"] != after["fingerprint"]
    assert before["parts"]["test"] == after["parts"]["test"]
    assert before["parts"]["unseen"] != after["parts"]["unseen"]
    file.write_bytes(b"")
    with pytest.raises(InputError, match=r"more/red/a\.png: not a readable image"):
        prepare_dataset(extra, tmp_path / "run")


def test_a_share_of_the_extra_part_may_be_the_validation_part(
    extra: DataSettings, tmp_path: Path
) -> None:
    save_image(tmp_path / "more" / "blue" / "01.png", (99, 99, 99), seed=9)
    red = tmp_path / "more" / "red"  # equal bytes stay on one side
    (red / "c.png").write_bytes((red / "a.png").read_bytes())
    before, data = load_dataset(extra), load_dataset(changed(extra, validation=0.5))
    for part in ("train", "test"):
        assert data.split(part).equals(before.split(part))
    assert not set(data.split("val")["image"]) & set(before.split("val")["image"])
    both = pd.concat([data.split("val"), data.split("unseen")])
    assert sorted(both["image"]) == sorted(before.split("unseen")["image"])
    assert both.drop_duplicates("digest").groupby(["label", "split"]).size().min() >= 1
    assert both.groupby("digest")["split"].nunique().max() == 1
    assert all(path.is_file() for path in data.paths)
    assert "50% of it are the validation part" in data.notes[-1]
    assert data.only("val").from_extra.all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "red"}, r"extra_test.name = 'red': the dataset has a folder"),
        ({"folder": "/none"}, r"extra_test.folder = '/none': no such folder"),
    ],
)
def test_an_extra_part_that_cannot_be_used_is_refused(
    extra: DataSettings, values: dict[str, str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load_dataset(changed(extra, **values))


def test_boxes_come_from_where_they_are_known(colour_folder: Path) -> None:
    drawn = DataSettings(image_limit=30)
    boxes = object_boxes(drawn, load_dataset(drawn), most=4)
    assert boxes is not None
    assert len(boxes) == 4
    assert object_boxes(DataSettings(dataset=str(colour_folder)), load(colour_folder)) is None
