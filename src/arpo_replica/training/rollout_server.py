"""verl's vLLM server, to which each screenshot is sent once, and which says where a reply's seconds went.

verl 0.9.1 gives vLLM all pictures of a conversation again with every turn: they are pickled, unpickled and
hashed ten times in an episode of ten. Here a screenshot comes as the bytes of its file with a name; later
turns give the name alone, and vLLM finds what it made of it in its cache (``multi_modal_uuids``). A name that
vLLM has forgotten is answered by ``FORGOTTEN``; then the whole history is sent once more.

Enters by verl's registry of rollout engines (``verl_plugin.register_rollout``). ``FeatureConnector``, which
leaves what the vision tower made of a screenshot to the trainer, enters by vLLM's ``ec_transfer_config``.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
import torch
from PIL import Image
from verl.workers.rollout.replica import TokenOutput
from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer, vLLMReplica
from vllm.distributed.ec_transfer.ec_connector.example_connector import ECExampleConnector

from arpo_replica.base.upstream_guards import require_function, require_verl
from arpo_replica.training.conversation import FORGOTTEN, decode
from arpo_replica.training.job import current_job
from arpo_replica.training.pixels import FeatureFolder


class NamingEngine:
    """vLLM's engine, with the names of a request's screenshots added, and its last counters kept."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.names: dict[str, list[str]] = {}
        """Request -> names of its screenshots, while it runs."""
        self.stats: dict[str, Any] = {}
        """Request -> vLLM's times of it, once it has ended."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    async def generate(self, *, prompt: Any, request_id: str, **options: Any) -> AsyncIterator[Any]:
        """See ``AsyncLLM.generate``."""
        if request_id in self.names:
            prompt = {**prompt, "multi_modal_uuids": {"image": self.names[request_id]}}
            # The engine has the same options for all screenshots (``recipe``); given once more, vLLM would
            # call a screenshot by a hash of its name and these.
            prompt.pop("mm_processor_kwargs", None)
        async for output in self.engine.generate(prompt=prompt, request_id=request_id, **options):
            self.stats[request_id] = output.metrics
            yield output


class vLLMNamedServer(vLLMHttpServer):
    """See the module."""

    async def run_server(self, args: Any) -> None:
        """As verl's; the engine then adds names."""
        await super().run_server(args)
        self.engine: Any = NamingEngine(self.engine)

    async def generate(
        self, prompt_ids: list[int], sampling_params: dict[str, Any], request_id: str, **options: Any
    ) -> TokenOutput:
        """As verl's. ``image_data`` may be pairs of a screenshot's name and its file, or None instead.

        ``extra_fields["seconds"]`` of the answer: see ``reply_seconds``.
        """
        began = time.monotonic()
        shots = options.get("image_data") or []
        named = bool(shots) and isinstance(shots[0], tuple)
        if named:
            options["image_data"] = await asyncio.gather(*(decoded(file) for _, file in shots))
            self.engine.names[request_id] = [name for name, _ in shots]
        opened = time.monotonic()
        try:
            output = await super().generate(prompt_ids, sampling_params, request_id, **options)
        except ValueError:  # vLLM looks a name up before it does anything else
            if not named or all(file is not None for _, file in shots):
                raise
            return TokenOutput(token_ids=[], log_probs=None, stop_reason=FORGOTTEN)
        finally:
            self.engine.names.pop(request_id, None)
            stats = self.engine.stats.pop(request_id, None)
        output.extra_fields["seconds"] = reply_seconds(stats, opened - began, time.monotonic() - opened)
        return output


class NamedReplica(vLLMReplica):
    """verl's replica with that server."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        require_verl(__name__)
        super().__init__(*args, **kwargs)
        self.server_class = ray.remote(vLLMNamedServer)


class FeatureConnector(ECExampleConnector):
    """Saves what vLLM's vision tower makes of each screenshot for the trainer; nothing is ever loaded.

    Its role is ``ec_both``: vLLM 0.24 takes a mere producer for an engine without a language model.
    """

    def __init__(self, vllm_config: Any, role: Any) -> None:
        super().__init__(vllm_config=vllm_config, role=role)
        self.folder = FeatureFolder.of(current_job())
        self.writer = ThreadPoolExecutor(1)

    def has_cache_item(self, identifier: str) -> bool:
        return False

    def save_caches(self, encoder_cache: dict[str, torch.Tensor], mm_hash: str, **unused: Any) -> None:
        """Write a screenshot's features, in a thread: the model goes on meanwhile."""
        # From a GPU into pinned memory, in order with the model's work; the thread waits for it.
        features = encoder_cache[mm_hash].detach().to("cpu", non_blocking=True)
        copied = torch.cuda.current_stream().record_event() if features.is_pinned() else None
        self.writer.submit(self._write, mm_hash, features, copied)

    def _write(self, name: str, features: torch.Tensor, copied: Any) -> None:
        if copied is not None:
            copied.synchronize()
        self.folder.save(name, features)


async def decoded(file: bytes | None) -> Image.Image | None:
    """The picture in an image file, decoded in a thread; None stays None."""
    if file is None:
        return None
    return await asyncio.to_thread(decode, file)


def reply_seconds(stats: Any, decoding: float, engine: float) -> dict[str, float]:
    """Where the seconds of a reply went: they add up to ``decoding`` + ``engine``.

    ``png``: decoding the screenshot; ``queue``, ``prefill``, ``sampling``: vLLM's own times; ``front``: what
    is left, above all the image processor and the way to the engine and back. ``stats``: vLLM's
    ``RequestStateStats``; None where they are switched off.
    """
    times = {"queue": 0.0, "prefill": 0.0, "sampling": 0.0}
    if stats is not None and stats.last_token_ts:
        times = {
            "queue": stats.scheduled_ts - stats.queued_ts,
            "prefill": stats.first_token_ts - stats.scheduled_ts,
            "sampling": stats.last_token_ts - stats.first_token_ts,
        }
    return {"png": decoding, **times, "front": engine - sum(times.values())}


require_function(
    vLLMHttpServer, "generate", ("self", "prompt_ids", "sampling_params", "request_id"), __name__
)
require_function(vLLMHttpServer, "run_server", ("self", "args"), __name__)
