"""Stored trajectories: the same pixels come back, and changed screenshots are refused."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.cpu_env
pytest.importorskip("verl")

import torch  # noqa: E402
from PIL import Image  # noqa: E402
from verl.utils import hf_processor  # noqa: E402
from verl.utils.tensordict_utils import list_of_dict_to_tensordict  # noqa: E402

from arpo_replica.rollout.records import to_webp  # noqa: E402
from arpo_replica.training.items import ItemStore, QueueRow, value_of  # noqa: E402
from training.tiny_model import build_tiny_model  # noqa: E402

OPTIONS = {"min_pixels": 3136, "max_pixels": 100352}


@pytest.fixture
def stored(tmp_path: Path) -> tuple[ItemStore, dict[str, Any], list[Path]]:
    build_tiny_model(tmp_path / "model")
    images, paths = [], []
    for number in range(2):
        image = Image.effect_noise((168, 224), 40 + number).convert("RGB")
        out = io.BytesIO()
        image.save(out, "PNG")
        path = tmp_path / "episodes" / f"step_{number:03d}.webp"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(to_webp(out.getvalue()))
        images.append(image)
        paths.append(path)
    processor = hf_processor(str(tmp_path / "model"))
    inputs = dict(processor.image_processor(images=images, return_tensors="pt", **OPTIONS))
    row = {
        "uid": "old",
        "input_ids": torch.arange(7),
        "position_ids": torch.arange(28).reshape(4, 7),
        "rollout_log_probs": torch.tensor([-0.1, -1e-7, -12.3456789]),
        "response_mask": torch.tensor([1, 0, 1]),
        "multi_modal_inputs": inputs,
    }
    store = ItemStore(tmp_path / "items", tmp_path, tmp_path / "model", OPTIONS)
    store.save("a", [QueueRow(list_of_dict_to_tensordict([row]), {"seq_len": 7}, paths)])
    return store, row, paths


def test_a_trajectory_comes_back_as_it_was(stored: tuple[ItemStore, dict[str, Any], list[Path]]) -> None:
    store, row, _ = stored
    (found,) = store.load("a")
    fields = found.fields
    assert found.tag == {"seq_len": 7}
    inputs = value_of(fields["multi_modal_inputs"][0])
    assert torch.equal(inputs["pixel_values"], row["multi_modal_inputs"]["pixel_values"])
    assert torch.equal(inputs["image_grid_thw"], row["multi_modal_inputs"]["image_grid_thw"])
    for name in ("input_ids", "rollout_log_probs", "response_mask"):
        assert torch.equal(fields[name][0], row[name]), name
    assert (store.folder / "a.pt").stat().st_size < inputs["pixel_values"].nbytes / 20


def test_changed_screenshots_are_refused(stored: tuple[ItemStore, dict[str, Any], list[Path]]) -> None:
    store, _, paths = stored
    paths[1].write_bytes(paths[0].read_bytes())
    with pytest.raises(RuntimeError, match="stored trajectory a"):
        store.load("a")


def test_items_no_longer_needed_are_deleted(stored: tuple[ItemStore, dict[str, Any], list[Path]]) -> None:
    store, _, _ = stored
    store.keep_only({"a"})
    assert (store.folder / "a.pt").exists()
    store.keep_only(set())
    assert not (store.folder / "a.pt").exists()
