"""The work-arounds: what they repair, and that they refuse another upstream."""

from __future__ import annotations

import types

import pytest

pytestmark = pytest.mark.cpu_env
pytest.importorskip("verl")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from tensordict import TensorDict  # noqa: E402
from verl import DataProto  # noqa: E402
from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories  # noqa: E402
from verl.utils.tensordict_utils import nested_tensor_from_tensor_list  # noqa: E402

from arpo_replica.base import upstream_guards  # noqa: E402
from arpo_replica.base.upstream_guards import UpstreamChanged  # noqa: E402
from arpo_replica.training.patches import verl_plugin, weight_socket  # noqa: E402
from arpo_replica.training.process import launch  # noqa: E402


def batch(lengths: list[int], ids: torch.Tensor) -> TensorDict:
    tokens = torch.nested.as_nested_tensor([torch.arange(n) for n in lengths], layout=torch.jagged)
    return TensorDict({"input_ids": tokens, "position_ids": ids}, batch_size=[len(lengths)])


@pytest.mark.parametrize("lengths", [[5, 5, 5], [5], [3, 5, 2]])
def test_position_ids_get_their_samples_back(lengths: list[int]) -> None:
    """verl #7899: equally long samples come packed along the rows; others must not be touched."""
    samples = [torch.arange(4 * n).reshape(4, n) + 100 * i for i, n in enumerate(lengths)]
    if len(set(lengths)) == 1:
        ids = torch.nested.as_nested_tensor(samples, layout=torch.jagged)  # ragged along dimension 1
        assert ids._values.shape == (4 * len(lengths), lengths[0])
    else:
        ids = nested_tensor_from_tensor_list(samples, ragged_idx=2)
    data = batch(lengths, ids)
    verl_plugin.repair_position_ids(data)
    repaired = data["position_ids"]
    assert repaired._values.shape == (4, sum(lengths))
    assert torch.equal(repaired._values, torch.cat(samples, dim=1))
    assert repaired.offsets().diff().tolist() == lengths


def test_verl_asks_for_the_gpus_generation_without_starting_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its import does; what has started CUDA cannot be forked."""
    from verl.plugin.platform.platform_cuda import PlatformCUDA
    from vllm.platforms import current_platform

    def start() -> None:
        raise AssertionError("CUDA was started")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "_lazy_init", start)
    monkeypatch.setattr(type(current_platform), "get_device_capability", lambda self: (9, 0))
    with launch.cuda_unused():
        assert PlatformCUDA().get_device_capability(0) == (9, 0)
        with pytest.raises(RuntimeError, match="not started while"):  # what vLLM catches (fla/ops/utils.py)
            torch.cuda.current_device()
    with pytest.raises(AssertionError, match="CUDA was started"):
        PlatformCUDA().get_device_capability(0)


def test_a_forked_process_tries_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """It never comes back into the test, also where there is no CUDA."""
    for answer in (0, 3):
        library = types.SimpleNamespace(cuInit=lambda flags, answer=answer: answer)
        monkeypatch.setattr(launch.ctypes, "CDLL", lambda name, library=library: library)
        assert launch.status_of_cuda_when_forked() == answer

    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(launch.ctypes, "CDLL", missing)
    assert launch.status_of_cuda_when_forked() == 255


def test_an_unknown_layout_is_refused() -> None:
    ids = torch.nested.as_nested_tensor([torch.zeros(3, 4), torch.zeros(2, 4)], layout=torch.jagged)
    with pytest.raises(RuntimeError, match="7899"):
        verl_plugin.repair_position_ids(batch([4, 4], ids))


def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream_guards, "version", lambda package: "0.10.0")
    with pytest.raises(UpstreamChanged, match=r"0\.9\.1.*0\.10\.0"):
        verl_plugin.install()


def test_a_changed_function_is_refused() -> None:
    owner = types.SimpleNamespace(__name__="owner", f=lambda other: None)
    with pytest.raises(UpstreamChanged, match=r"owner\.f"):
        upstream_guards.require_function(owner, "f", ("data",), "m")
    with pytest.raises(UpstreamChanged, match="no longer exists"):
        upstream_guards.require_function(owner, "g", ("data",), "m")


def test_two_trainings_have_two_sockets() -> None:
    handle = "ipc:///tmp/rl-colocate-zmq-01000000-replica-0-rank-0.sock"
    paths = {weight_socket.private_handle(handle, scratch) for scratch in ("/tmp/a", "/tmp/b")}
    assert paths == {f"ipc:///tmp/{x}/weights-01000000-replica-0-rank-0.sock" for x in "ab"}
    with pytest.raises(UpstreamChanged):
        weight_socket.private_handle("tcp://127.0.0.1:1", "/tmp/a")


def test_a_lost_rollout_leaves_group_statistics_alone() -> None:
    """A group of 4 that lost one rollout is normalised over 3; verl's filling rows get advantage 0."""
    keys = ["g_0_0", "g_1_0", "g_3_0", "pad1_0_0"]
    rewards = torch.tensor([[0.0, 1.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    mask = torch.tensor([[1, 1], [1, 1], [1, 1], [0, 0]])
    data = DataProto.from_dict(
        tensors={"token_level_rewards": rewards, "token_level_scores": rewards, "response_mask": mask},
        non_tensors={"uid": np.array(["g", "g", "g", "pad1"], dtype=object)},
    )
    done = compute_advantage_for_multi_trajectories(data, batch_keys=keys, adv_estimator="grpo")
    mean, std = 1 / 3, float(torch.tensor([1.0, 0.0, 0.0]).std())
    expected = torch.tensor([(1 - mean) / std, -mean / std, -mean / std, 0.0])
    assert torch.allclose(done.batch["advantages"][:, 0], expected, atol=1e-4)
