"""Prepared once, found again, rebuilt when damaged."""

import json
import os
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest

from bench.data import cache as cache_module
from bench.data import load, open_source, prepare
from bench.errors import UserError
from bench.sizes import show_size


@pytest.fixture
def source():
    return open_source("phantom", None, ("t1",), volume=16, seed=0, subjects=3)


@pytest.fixture
def path(source, tmp_path) -> Path:
    return prepare(source, tmp_path)


def rebuilt(source, path: Path) -> bool:
    calls = []
    again = prepare(source, path.parent, lambda done, total: calls.append((done, total)))
    assert again == path
    assert np.array_equal(load(path), np.stack([source[i] for i in range(3)]))
    assert calls in ([], [(1, 3), (2, 3), (3, 3)])
    return bool(calls)


def test_a_memory_map_of_all_volumes_and_nothing_else_in_the_folder(source, path):
    volumes = load(path)
    assert isinstance(volumes, np.memmap)
    assert volumes.shape == (3, 1, 16, 16, 16)
    assert volumes.dtype == np.float32
    assert not volumes.flags.writeable
    assert sorted(p.suffix for p in path.parent.iterdir()) == [".json", ".npy"]


def test_the_second_time_it_is_only_opened(source, path):
    assert not rebuilt(source, path)


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    side = path.with_suffix(".json")
    if how == "truncated":
        path.write_bytes(content[:-100])
    elif how == "longer":
        path.write_bytes(content + b"0" * 100)
    elif how == "one bit":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif how == "another header":
        content[70:80] = b"((((((((((("[:10]
        path.write_bytes(content)
    elif how == "emptied":
        path.write_bytes(b"")
    elif how == "pickled":
        path.write_bytes(pickle.dumps(np.zeros(3)))
    elif how == "no note":
        side.unlink()
    elif how == "half a note":
        side.write_text(side.read_text()[:40])
    elif how == "nested note":
        side.write_text("[" * 100_000)
    elif how == "binary note":
        side.write_bytes(os.urandom(100))
    elif how == "a note of terabytes":
        side.write_text(json.dumps(json.loads(side.read_text()) | {"shape": [10**9, 9, 9, 9, 9]}))
    elif how == "another's note":
        note = json.loads(side.read_text())
        note["identity"]["content"]["seed"] = 99
        side.write_text(json.dumps(note))
    else:
        raise AssertionError(how)


DAMAGE = (
    *("truncated", "longer", "one bit", "another header", "emptied", "pickled"),
    *("no note", "half a note", "nested note", "binary note", "a note of terabytes"),
    "another's note",
)


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_cache_is_rebuilt(source, path, how):
    damage(path, how)
    assert rebuilt(source, path)
    assert not rebuilt(source, path)


@pytest.mark.parametrize("how", ["truncated", "emptied", "pickled", "no note", "another header"])
def test_a_trial_refuses_a_damaged_cache_in_one_line(path, how):
    damage(path, how)
    with pytest.raises(UserError, match=path.name):
        load(path)


def test_a_flipped_bit_is_found_in_a_file_too_large_to_read_whole(source, path, monkeypatch):
    monkeypatch.setattr(cache_module, "BLOCK", 1 << 10)
    monkeypatch.setattr(cache_module, "BLOCKS_CHECKED", 4)
    size = path.stat().st_size
    starts = list(cache_module._block_starts(size))
    assert starts[0] == 0
    assert len(starts) == 4
    assert len(set(starts)) == 4
    assert max(starts) < size


@pytest.mark.parametrize(
    "change",
    [
        {"volume": 17},
        {"seed": 1},
        {"modality": ("t2",)},
        {"modality": ("t1", "t2")},
        {"subjects": 2},
    ],
)
def test_other_settings_are_another_file(source, path, change):
    flags = {"modality": ("t1",), "volume": 16, "seed": 0, "subjects": 3} | change
    other = prepare(open_source("phantom", None, **flags), path.parent)
    assert other != path
    assert not rebuilt(source, path)


def test_a_changed_scan_is_another_file(small_folder, tmp_path):
    flags = {"data_dir": small_folder, "modality": ("t1",), "volume": 8, "seed": 0}
    before = prepare(open_source("brats", **flags), tmp_path / "cache")
    scan = next(small_folder.glob("*/*_t1.nii.gz"))
    os.utime(scan, ns=(1, 1))
    assert prepare(open_source("brats", **flags), tmp_path / "cache") != before


def test_an_interrupted_preparation_leaves_nothing(source, tmp_path):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(source, tmp_path, interrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_refused_in_one_line(source, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write the cache"):
        prepare(source, tmp_path / "file" / "cache")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line_that_says_how_much_is_needed(source, tmp_path, monkeypatch):
    original = Path.open

    def open_on_a_full_disk(self, *args, **kwargs):
        target = Path("/dev/full") if self.suffix == ".tmp" else self
        return original(target, *args, **kwargs)

    monkeypatch.setattr(Path, "open", open_on_a_full_disk)
    needed = show_size(4 * len(source) * source[0].size)
    with pytest.raises(UserError, match=rf"No space left.*\({needed} are needed\)"):
        prepare(source, tmp_path)


def test_two_containers_share_a_cache_folder(source, tmp_path):
    """Their processes have the same number: one of the two was refused, every time."""
    begun, go_on = threading.Event(), threading.Event()
    paths: list[Path] = []

    def wait(done: int, total: int) -> None:
        begun.set()
        assert go_on.wait(60)

    slow = threading.Thread(target=lambda: paths.append(prepare(source, tmp_path, wait)))
    slow.start()
    assert begun.wait(60)
    paths.append(prepare(source, tmp_path))  # begins and ends while the other is at work
    go_on.set()
    slow.join()
    assert len(paths) == 2
    assert paths[0] == paths[1]
    assert len(load(paths[0])) == len(source)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".npy"]
